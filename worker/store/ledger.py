"""What Redis knows about queues and sessions, as calls: who speaks, who waits, what is done.

The cold half of the Redis side: a few calls a turn. Frames go through ``worker.publish.publisher``.
"""

import secrets
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import cast

import anyio
import msgspec
import structlog

from voicefleet.schemas import records
from voicefleet.schemas.audio import Reason
from voicefleet.schemas.fields import Fields
from voicefleet.schemas.keys import BACKLOG, GROUP, ORPHANS, Keys
from voicefleet.schemas.records import MAX_DEAD_LETTERS, DeadLetter
from voicefleet.schemas.request import Request, TextPiece
from voicefleet.wire.link import Argument, Reply, ReplyError
from voicefleet.wire.router import Router
from voicefleet.worker.store import scripts
from voicefleet.worker.store.lease_states import Claim, Standing
from voicefleet.worker.store.scripts import Script

log = structlog.stdlib.get_logger(__name__)

OWNERS_RETURN_S = 2.0
MOST_DIGITS = 20


class Delivery(msgspec.Struct, frozen=True):
    """One entry of a model's request stream in this worker's hands.

    ``claim`` says how its session's lease is asked for: ``FRESH``, or ``TAKE_OVER`` where another
    worker had the request before.
    """

    model: str
    entry: str
    fields: dict[bytes, bytes]
    claim: Claim

    @property
    def added_ms(self) -> int:
        """When it was added: unix ms in server time."""
        return int(self.entry.partition("-")[0])


class Acquired(msgspec.Struct, frozen=True):
    """The answer to an attempt to take a session's lease; see ``acquire.lua``.

    ``last`` is the last published frame number: 0 after the start alone, -1 before it.
    """

    standing: Standing
    epoch: str = ""
    turn: int = 0
    last: int = -1
    attempts: int = 0
    resume: bytes = b""


class Enqueued(msgspec.Struct, frozen=True):
    """The answer to an attempt to wait for a session; see ``enqueue.lua``.

    ``interrupts``: everything of the session that was added before ends now. ``talks``: the
    session speaks, or has spoken lately.
    """

    standing: Standing
    interrupts: bool
    talks: bool


class Waiter(msgspec.Struct, frozen=True, order=True):
    """A request that waits for its session; ordered as they are to be spoken."""

    ms: int
    seq: int
    model: str
    request: str
    interrupt: bool

    @property
    def entry(self) -> str:
        """Its entry in the model's queue."""
        return f"{self.ms}-{self.seq}"


class Lease(msgspec.Struct, frozen=True):
    """A session's lease as one reads it: who speaks, who waits."""

    active: bool = False
    epoch: str = ""
    request: str = ""
    entry: str = ""
    model: str = ""
    owner: str = ""
    waiters: tuple[Waiter, ...] = ()

    @classmethod
    def decode(cls, fields: Fields) -> "Lease":
        """Read the hash. Never fails: what cannot be read is not there."""
        waiters: list[Waiter] = []
        for field, value in fields.items():
            if field.startswith(b"w:"):
                with suppress(ValueError):
                    _, entry, model = field.decode().split(":", 2)
                    ms, seq = entry.split("-")
                    text = value.decode()
                    waiters.append(Waiter(int(ms), int(seq), model, text[1:], text[:1] == "!"))
        epoch = fields.get(b"epoch", b"")
        return cls(
            active=fields.get(b"active") == b"1",
            epoch=epoch.decode() if epoch.isdigit() and len(epoch) <= MOST_DIGITS else "",
            **{
                name: fields.get(name.encode(), b"").decode("utf-8", "surrogateescape")
                for name in ("request", "entry", "model", "owner")
            },
            waiters=tuple(sorted(waiters)),
        )

    def after(self, entry: str, model: str) -> tuple[Waiter, ...]:
        """Those who wait and were added after this entry."""
        place = _place(entry, model)
        return tuple(w for w in self.waiters if (w.ms, w.seq, w.model) > place)

    def before(self, entry: str, model: str) -> tuple[Waiter, ...]:
        """Those who wait and were added before this entry."""
        place = _place(entry, model)
        return tuple(w for w in self.waiters if (w.ms, w.seq, w.model) < place)


def _place(entry: str, model: str) -> tuple[int, int, str]:
    ms, seq = (int(part) for part in entry.split("-"))
    return ms, seq, model


class Ledger:
    """Calls on one fleet's keys, in one worker's name.

    Every call waits out a server that is away, loading or failing over; ``ReplyError`` is a refusal
    that trying again would not change.
    """

    def __init__(self, router: Router, keys: Keys, worker: str, ttl_ms: int) -> None:
        self._router = router
        self._keys = keys
        self._worker = worker
        self._ttl_ms = ttl_ms

    # The queue of one model.

    async def create_group(self, model: str) -> None:
        """Make the model's queue and group, from its first entry: nothing sent is missed."""
        try:
            key = self._keys.requests(model)
            await self._router.call(key, "XGROUP", "CREATE", key, GROUP, "0", "MKSTREAM")
        except ReplyError as error:
            if not str(error).startswith(("BUSYGROUP", "WRONGTYPE")):
                raise

    async def hand_back(self, model: str, entries: Iterable[str]) -> int:
        """Give requests of ours to whoever has a slot for them. Returns how many were ours."""
        return await self._orphan(model, self._worker, entries)

    async def bury(self, model: str, worker: str) -> int:
        """Hand back all requests of a dead worker and forget it. Returns how many."""
        return await self._orphan(model, worker, ())

    async def _orphan(self, model: str, owner: str, entries: Iterable[str]) -> int:
        keys = [self._keys.requests(model), self._keys.wake(model)]
        moved = await self._run_on_queue(scripts.ORPHAN, keys, GROUP, ORPHANS, owner, *entries)
        return cast(int | None, moved) or 0

    async def owners(self, model: str) -> set[str]:
        """Workers in whose hands the model's requests are, living or dead."""
        key = self._keys.requests(model)
        try:
            reply = await self._router.call(key, "XINFO", "CONSUMERS", key, GROUP)
        except ReplyError:
            return set()  # no queue yet, or something else in its place
        consumers = cast(list[dict[bytes, bytes]], reply)
        names = {consumer[b"name"].decode("utf-8", "replace") for consumer in consumers}
        return names - {ORPHANS, BACKLOG}

    async def pending(self, model: str) -> set[str] | None:
        """Entries of the model's queue that are in this worker's name; ``None``: no queue."""
        key = self._keys.requests(model)
        try:
            reply = await self._router.call(
                key, "XPENDING", key, GROUP, "-", "+", 10_000, self._worker
            )
        except ReplyError:
            return None
        return {item[0].decode() for item in cast(list[list[bytes]], reply)}

    async def is_queued(self, model: str, entry: str) -> bool:
        """Whether a request is still on the model's queue. Names may be debris of a lease."""
        if not (model.isprintable() and entry.isprintable()):
            return False
        key = self._keys.requests(model)
        try:
            return bool(await self._router.call(key, "XRANGE", key, entry, entry))
        except ReplyError:
            return False  # no entry id, or something else in the queue's place

    async def settle(self, delivery: Delivery, session: str | None, request: str) -> bool:
        """The request is done: acknowledge and delete it.

        With the ``session`` in which it was answered, returns whether the server still knows of
        that: ``False`` where a failover has forgotten it. (Not asked where sessions have servers
        of their own.)
        """
        keys = self._order_keys(delivery.model)
        if session is not None and not self._router.topology.is_sharded:
            keys += [self._keys.lease(session), self._keys.spoken(session)]
        settled = await self._run_on_queue(
            scripts.SETTLE, keys, GROUP, delivery.entry, delivery.model, request
        )
        return settled != -1

    def _order_keys(self, model: str) -> list[str]:
        return [self._keys.requests(model), self._keys.order(model)]

    async def bury_letter(
        self, delivery: Delivery, session: str | None, request: str, reason: Reason, error: str
    ) -> None:
        """Note in ``tts:dead`` that nobody may try this request again, and why; not its text."""
        letter = DeadLetter(
            model=delivery.model,
            entry=delivery.entry,
            session=session,
            request=request,
            reason=reason,
            error=error,
            worker=self._worker,
        )
        fields = [part for item in records.encode(letter).items() for part in item]
        try:
            key = self._keys.dead
            await self._router.call(key, "XADD", key, "MAXLEN", "~", MAX_DEAD_LETTERS, "*", *fields)
        except ReplyError as failure:
            log.warning("dead_letter_lost", entry=delivery.entry, error=str(failure))

    # One session.

    async def is_added_later(self, delivery: Delivery, session: str, request: str) -> bool:
        """Whether the named request of the session stands after this one in the same queue."""
        keys = self._order_keys(delivery.model)
        found = await self._run_on_queue(scripts.LATER, keys, delivery.entry, session, request)
        return found == 1

    async def enqueue(
        self, delivery: Delivery, request: Request, *, most: int, conversation_s: float
    ) -> Enqueued:
        """Let a request wait for its session, unless ``most`` wait before it.

        ``SESSION_FULL`` is noted in the session's own keys: whoever is there then answers the
        request in its order. A dead letter says so.

        Args:
            delivery: The request's entry.
            request: The same, read.
            most: So many may wait in the session.
            conversation_s: A session that spoke within this time is in conversation.
        """
        keys, session = self._keys, request.session
        before, earlier = await self._before(delivery, session)
        reply = await self._run(
            scripts.ENQUEUE,
            [key(session) for key in (keys.lease, keys.session, keys.spoken, keys.refused)]
            + before,
            request.name,
            delivery.entry,
            delivery.model,
            "1" if request.interrupt else "0",
            self._ttl_ms,
            most,
            int(conversation_s * 1000),
            *earlier,
        )
        answer, interrupts, talks = cast(list[bytes], reply)
        standing = Standing(answer.decode())
        if standing is Standing.SESSION_FULL:
            error = f"max_waiting_turns: {most} requests wait in this session"
            log.info("rejected", error=error)
            await self.bury_letter(delivery, session, request.name, "rejected", error)
        return Enqueued(standing, interrupts == b"1", talks == b"1")

    async def _before(self, delivery: Delivery, session: str) -> tuple[list[str], list[str]]:
        """How a script finds what stands before a request: keys of the queue, or names."""
        keys = self._order_keys(delivery.model)
        if not self._router.topology.is_sharded:
            return keys, []
        reply = await self._run_on_queue(scripts.EARLIER, keys, delivery.entry, session)
        return [], [name.decode("utf-8", "replace") for name in cast(list[bytes], reply or [])]

    async def acquire(
        self,
        delivery: Delivery,
        session: str,
        request: str,
        *,
        claim: Claim,
        last: Acquired | None = None,
    ) -> Acquired:
        """Take the session's lease for this request, if it is its turn.

        With ``REGAIN``, ``last`` is what this worker held before the server forgot it.
        """
        if claim in (Claim.FRESH, Claim.TAKE_OVER):
            # A server that has just taken over may not know of turns that are being spoken: those
            # who speak them come back first, or their numbers would go to others.
            leads_since = self._router.topology.leads_since(self._keys.lease(session))
            await anyio.sleep(max(0.0, leads_since + OWNERS_RETURN_S - time.monotonic()))
        before, earlier = await self._before(delivery, session)
        reply = await self._run(
            scripts.ACQUIRE,
            self.session_keys(session) + before,
            claim,
            request,
            delivery.entry,
            delivery.model,
            self._worker,
            self._ttl_ms,
            last.turn if last else 0,
            last.epoch if last else "",
            secrets.token_hex(8),
            *earlier,
        )
        answer, *rest = cast(list[bytes], reply)
        standing = Standing(answer.decode())
        if not rest:
            return Acquired(standing)
        epoch, turn, newest, attempts, resume = rest
        return Acquired(standing, epoch.decode(), int(turn), int(newest), int(attempts), resume)

    async def begin_attempt(self, session: str, epoch: str) -> None:
        """Another attempt at a suspect turn begins: it counts, should it kill this worker."""
        await self._run(scripts.ATTEMPT, [self._keys.lease(session)], epoch, "1")

    async def survived(self, session: str, epoch: str) -> None:
        """The attempt has made all that may be made now: none of those so far counts any more."""
        await self._run(scripts.ATTEMPT, [self._keys.lease(session)], epoch, "0")

    async def release(self, session: str, epoch: str, *, blameless: bool) -> None:
        """Give up a turn in its middle; ``blameless`` does not count against the request."""
        keys = [self._keys.lease(session)]
        await self._run(scripts.RELEASE, keys, epoch, "1" if blameless else "0")

    async def mark_text(
        self, text_key: str, session: str, epoch: str, after: str, entry: str, piece: TextPiece
    ) -> int:
        """Add a decision to a turn's text; returns as ``mark.lua``."""
        fields = [part for item in piece.encode().items() for part in item]
        keys = [self._keys.lease(session), text_key]
        return cast(int, await self._run(scripts.MARK, keys, epoch, after, entry, *fields))

    async def abandon(self, session: str, entry: str, model: str, owner: str) -> None:
        """Give up an owner's turn that will never end, so that others need not wait for it."""
        held = (text.encode("utf-8", "surrogateescape") for text in (entry, model, owner))
        await self._run(scripts.ABANDON, [self._keys.lease(session)], *held)

    async def updated_ms(self, session: str) -> int:
        """When the session's record was last written: server unix ms, 0 where that is unknown."""
        key = self._keys.session(session)
        try:
            value = cast(bytes | None, await self._router.call(key, "HGET", key, "updated_ms"))
        except ReplyError:
            return 0  # something else in the record's place
        return int(value) if value and value.isdigit() else 0

    async def touch(self, keys: Sequence[str]) -> None:
        """Let keys of one session live for another ``audio_ttl_s``."""
        await self._router.batch(keys[0], [("PEXPIRE", key, self._ttl_ms) for key in keys])

    def session_keys(self, session: str) -> list[str]:
        """KEYS of the session scripts: lease, audio, session, spoken, refused."""
        keys = self._keys
        own = (keys.lease, keys.audio, keys.session, keys.spoken, keys.refused)
        return [key(session) for key in own]

    async def _run_on_queue(self, script: Script, keys: Sequence[str], *args: Argument) -> Reply:
        return await script.on_queue(self._router, keys, *args)

    async def _run(self, script: Script, keys: Sequence[str], *args: Argument) -> Reply:
        return await script(self._router, keys, *args)
