"""What Redis knows about queues and sessions, as calls: who speaks, who waits, what is done.

The cold half of the Redis side: a few calls a turn. Frames go through ``worker.publisher``.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Literal, cast

import msgspec
import structlog

from schemas.fields import Fields, paired
from schemas.keys import GROUP, ORPHANS, Keys
from wire.link import Argument, Reply, ReplyError
from wire.switchboard import Switchboard
from worker import scripts
from worker.scripts import Script

log = structlog.stdlib.get_logger(__name__)

DEAD_LETTERS = 10_000

Claim = Literal["fresh", "over", "again"]
Standing = Literal["new", "over", "taken", "busy", "known"]


class Delivery(msgspec.Struct, frozen=True):
    """One entry of a model's request stream in this worker's hands.

    ``claim`` says how it came: ``fresh`` from the queue, or ``over`` from another owner.
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


class Waiter(msgspec.Struct, frozen=True, order=True):
    """A request that waits for its session; ordered as they are to be spoken."""

    ms: int
    seq: int
    model: str
    request: str
    interrupt: bool

    def is_of(self, entry: str, model: str) -> bool:
        """Whether this is the given entry of the given model's queue."""
        return f"{self.ms}-{self.seq}" == entry and self.model == model


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
            epoch=epoch.decode() if epoch.isdigit() else "",
            **{
                name: fields.get(name.encode(), b"").decode("utf-8", "replace")
                for name in ("request", "entry", "model", "owner")
            },
            waiters=tuple(sorted(waiters)),
        )

    def after(self, entry: str, model: str) -> tuple[Waiter, ...]:
        """Those who wait and were added after this entry."""
        ms, seq = (int(part) for part in entry.split("-"))
        return tuple(w for w in self.waiters if (w.ms, w.seq, w.model) > (ms, seq, model))


class Ledger:
    """Calls on one fleet's keys, in one worker's name.

    Every call waits out a server that is away, loading or failing over; ``ReplyError`` is a refusal
    that trying again would not change.
    """

    def __init__(self, switchboard: Switchboard, keys: Keys, worker: str, ttl_ms: int) -> None:
        self._switchboard = switchboard
        self._keys = keys
        self._worker = worker
        self._ttl_ms = ttl_ms

    # The queue of one model.

    async def create_group(self, model: str) -> None:
        """Make the model's queue and group, from its first entry: nothing sent is missed."""
        try:
            key = self._keys.requests(model)
            await self._switchboard.call(key, "XGROUP", "CREATE", key, GROUP, "0", "MKSTREAM")
        except ReplyError as error:
            if not str(error).startswith(("BUSYGROUP", "WRONGTYPE")):
                raise

    async def take_orphan(self, model: str) -> Delivery | None:
        """The oldest request that nobody owns."""
        reply = await self._run_on_queue(
            scripts.TAKE, [self._keys.requests(model)], GROUP, ORPHANS, self._worker
        )
        for entry, fields in cast(list[tuple[bytes, list[bytes]]], reply or []):
            return Delivery(model, entry.decode(), paired(fields), "over")
        return None

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
            reply = await self._switchboard.call(key, "XINFO", "CONSUMERS", key, GROUP)
        except ReplyError:
            return set()  # no queue yet, or something else in its place
        consumers = cast(list[dict[bytes, bytes]], reply)
        return {consumer[b"name"].decode("utf-8", "replace") for consumer in consumers} - {ORPHANS}

    async def pending(self, model: str) -> set[str]:
        """Entries of the model's queue that are in this worker's name."""
        key = self._keys.requests(model)
        try:
            reply = await self._switchboard.call(
                key, "XPENDING", key, GROUP, "-", "+", 10_000, self._worker
            )
        except ReplyError:
            return set()
        return {item[0].decode() for item in cast(list[list[bytes]], reply)}

    async def is_queued(self, model: str, entry: str) -> bool:
        """Whether a request is still on the model's queue."""
        key = self._keys.requests(model)
        try:
            return bool(await self._switchboard.call(key, "XRANGE", key, entry, entry))
        except ReplyError:
            return False  # no entry id, or something else in the queue's place

    async def is_alive(self, worker: str) -> bool:
        """Whether a worker is there, by its record."""
        key = self._keys.worker(worker)
        return bool(worker) and await self._switchboard.call(key, "EXISTS", key) == 1

    async def settle(self, delivery: Delivery) -> None:
        """The request is done: acknowledge and delete it."""
        await self._run_on_queue(
            scripts.SETTLE, [self._keys.requests(delivery.model)], GROUP, delivery.entry
        )

    async def bury_letter(
        self, delivery: Delivery, session: str | None, request: str, reason: str, error: str
    ) -> None:
        """Note in ``tts:dead`` that nobody may try this request again, and why; not its text."""
        fields: list[str] = ["model", delivery.model, "entry", delivery.entry]
        if session is not None:
            fields += ["session", session]
        fields += ["request", request, "reason", reason, "error", error, "worker", self._worker]
        try:
            key = self._keys.dead
            await self._switchboard.call(
                key, "XADD", key, "MAXLEN", "~", DEAD_LETTERS, "*", *fields
            )
        except ReplyError as failure:
            log.warning("dead_letter_lost", entry=delivery.entry, error=str(failure))

    # One session.

    async def _earlier(self, delivery: Delivery, session: str) -> list[str]:
        """Names of the session's requests that stand before this one in its queue."""
        keys = [self._keys.requests(delivery.model)]
        reply = await self._run_on_queue(scripts.EARLIER, keys, delivery.entry, session)
        return [name.decode("utf-8", "replace") for name in cast(list[bytes], reply or [])]

    async def is_added_later(self, delivery: Delivery, session: str, request: str) -> bool:
        """Whether the named request of the session stands after this one in the same queue."""
        keys = [self._keys.requests(delivery.model)]
        found = await self._run_on_queue(scripts.LATER, keys, delivery.entry, session, request)
        return found == 1

    async def enqueue(
        self, delivery: Delivery, session: str, request: str, *, interrupt: bool
    ) -> int | None:
        """Let a request wait. Returns how many wait before it, ``None`` if its name was taken."""
        keys = self._keys
        before = await self._run(
            scripts.ENQUEUE,
            [keys.lease(session), keys.session(session), keys.spoken(session)],
            request,
            delivery.entry,
            delivery.model,
            "1" if interrupt else "0",
            self._ttl_ms,
        )
        return None if before == -1 else cast(int, before)

    async def acquire(
        self,
        delivery: Delivery,
        session: str,
        request: str,
        *,
        claim: Claim,
        least_turn: int = 0,
    ) -> Acquired:
        """Take the session's lease for this request, if it is its turn."""
        keys, earlier = self.session_keys(session), list[str]()
        if self._switchboard.topology.is_sharded:
            earlier = await self._earlier(delivery, session)
        else:
            keys.append(self._keys.requests(delivery.model))
        reply = await self._run(
            scripts.ACQUIRE,
            keys,
            claim,
            request,
            delivery.entry,
            delivery.model,
            self._worker,
            self._ttl_ms,
            least_turn,
            *earlier,
        )
        status, *rest = cast(list[bytes], reply)
        standing = cast(Standing, status.decode())
        if not rest:
            return Acquired(standing)
        epoch, turn, last, attempts, resume = rest
        return Acquired(standing, epoch.decode(), int(turn), int(last), int(attempts), resume)

    async def release(self, session: str, epoch: str, *, blameless: bool) -> None:
        """Give up a turn in its middle; ``blameless`` does not count against the request."""
        keys = [self._keys.lease(session)]
        await self._run(scripts.RELEASE, keys, epoch, "1" if blameless else "0")

    async def abandon(self, session: str, entry: str, model: str, owner: str) -> None:
        """Give up an owner's turn that will never end, so that others need not wait for it."""
        await self._run(scripts.ABANDON, [self._keys.lease(session)], entry, model, owner)

    async def touch(self, sessions: Sequence[str]) -> None:
        """Keep the keys of living sessions from expiring."""
        for session in sessions:
            keys = self.session_keys(session)
            await self._switchboard.batch(keys[0], [("PEXPIRE", key, self._ttl_ms) for key in keys])

    def session_keys(self, session: str) -> list[str]:
        """KEYS of the session scripts: lease, audio, session, spoken."""
        keys = self._keys
        return [
            keys.lease(session),
            keys.audio(session),
            keys.session(session),
            keys.spoken(session),
        ]

    async def _run_on_queue(self, script: Script, keys: Sequence[str], *args: Argument) -> Reply:
        """Run it; ``None`` where the queue is gone, or something else stands in its place."""
        try:
            return await self._run(script, keys, *args)
        except ReplyError as error:
            if not str(error).startswith(("NOGROUP", "WRONGTYPE")):
                raise
            return None

    async def _run(self, script: Script, keys: Sequence[str], *args: Argument) -> Reply:
        return await script(self._switchboard, keys, *args)
