"""The keys of each session: its lease, who waits for it, and how long they are kept."""

import asyncio
import secrets
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from typing import cast

import anyio
import msgspec
import structlog

from voicefleet.schemas.fields import Fields
from voicefleet.schemas.keys import Keys
from voicefleet.schemas.request import Request, TextPiece
from voicefleet.wire.link import ReplyError
from voicefleet.wire.router import Router
from voicefleet.worker.store.lease_states import Claim, Standing
from voicefleet.worker.store.queues import Delivery, QueueStore
from voicefleet.worker.store.scripts.queue import Earlier
from voicefleet.worker.store.scripts.script import OrderKeys, SessionKeys
from voicefleet.worker.store.scripts.session import (
    Abandon,
    Acquire,
    Acquired,
    Attempt,
    Enqueue,
    Enqueued,
    Mark,
    Release,
)

log = structlog.stdlib.get_logger(__name__)

OWNERS_RETURN_S = 2.0
"""How long after a failover only owners that hold a lease may ask for it."""

REJECTION_LIMIT_S = 0.5
"""How long a cancelled caller still writes a rejection and its dead letter."""

MAX_EPOCH_DIGITS = 20


class Waiter(msgspec.Struct, frozen=True, order=True):
    """A request that waits for its session. Waiters sort in the order they will be spoken."""

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
    """A session's lease: which turn is spoken, by whom, and which requests wait."""

    active: bool = False
    epoch: str = ""
    request: str = ""
    entry: str = ""
    model: str = ""
    owner: str = ""
    waiters: tuple[Waiter, ...] = ()

    @classmethod
    def decode(cls, fields: Fields) -> "Lease":
        """Read the hash. Fields that cannot be read count as missing."""
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
            epoch=epoch.decode() if epoch.isdigit() and len(epoch) <= MAX_EPOCH_DIGITS else "",
            **{
                name: fields.get(name.encode(), b"").decode("utf-8", "surrogateescape")
                for name in ("request", "entry", "model", "owner")
            },
            waiters=tuple(sorted(waiters)),
        )

    def after(self, entry: str, model: str) -> tuple[Waiter, ...]:
        """The waiters that were added after this entry."""
        position = _position(entry, model)
        return tuple(w for w in self.waiters if (w.ms, w.seq, w.model) > position)

    def before(self, entry: str, model: str) -> tuple[Waiter, ...]:
        """The waiters that were added before this entry."""
        position = _position(entry, model)
        return tuple(w for w in self.waiters if (w.ms, w.seq, w.model) < position)


def _position(entry: str, model: str) -> tuple[int, int, str]:
    ms, seq = (int(part) for part in entry.split("-"))
    return ms, seq, model


class SessionStore:
    """The sessions' keys, as one worker uses them. Waits and raises as ``QueueStore``."""

    def __init__(
        self, router: Router, keys: Keys, worker: str, ttl_ms: int, queues: QueueStore
    ) -> None:
        self._router = router
        self._keys = keys
        self._worker = worker
        self._ttl_ms = ttl_ms
        self._queues = queues

    def keys(self, session: str) -> SessionKeys:
        """The session's keys."""
        return SessionKeys.of(self._keys, session)

    async def enqueue(
        self, delivery: Delivery, request: Request, *, most: int, conversation_s: float
    ) -> Enqueued:
        """Let a request wait for its session, unless ``most`` requests wait before it.

        With ``SESSION_FULL`` the rejection is stored in the session's keys, where whoever speaks
        the session next publishes it in its order; a dead letter is written now.

        Args:
            delivery: The request's entry.
            request: The same, decoded.
            most: So many requests may wait in the session.
            conversation_s: A session that spoke within this time is in conversation.
        """
        keys, model = self.keys(request.session), delivery.model
        queue, earlier = await self._before(delivery, request.session)
        with _cancelled_late(REJECTION_LIMIT_S):
            enqueued = await Enqueue(
                lease=keys.lease,
                session=keys.session,
                spoken=keys.spoken,
                refused=keys.refused,
                queue=queue,
                request=request.name,
                entry=delivery.entry,
                model=model,
                interrupts=request.interrupt,
                ttl_ms=self._ttl_ms,
                most=most,
                conversation_ms=int(conversation_s * 1000),
                earlier=earlier,
            ).run(self._router)
            if enqueued.standing is Standing.SESSION_FULL:
                error = f"max_waiting_turns: {most} requests wait in this session"
                log.info("request_rejected", error=error)
                await self._queues.add_dead_letter(
                    delivery, request.session, request.name, "rejected", error
                )
        return enqueued

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
        keys = self.keys(session)
        if claim in (Claim.FRESH, Claim.TAKE_OVER):
            # A server that has just taken over may have lost the lease of a turn that is being
            # spoken. Its owner asks again first; otherwise its entry numbers would go to another.
            leads_since = self._router.topology.leads_since(keys.lease)
            await anyio.sleep(max(0.0, leads_since + OWNERS_RETURN_S - time.monotonic()))
        queue, earlier = await self._before(delivery, session)
        return await Acquire(
            keys=keys,
            queue=queue,
            claim=claim,
            request=request,
            entry=delivery.entry,
            model=delivery.model,
            worker=self._worker,
            ttl_ms=self._ttl_ms,
            least_turn=last.turn if last else 0,
            last_epoch=last.epoch if last else "",
            ticket=secrets.token_hex(8),
            earlier=earlier,
        ).run(self._router)

    async def _before(
        self, delivery: Delivery, session: str
    ) -> tuple[OrderKeys | None, Sequence[str]]:
        """How a session's script finds the requests before this one: their queue, or their names.

        On a Cluster the queue may be on another server than the session: ask it first.
        """
        queue = OrderKeys.of(self._keys, delivery.model)
        if not self._router.topology.is_sharded:
            return queue, ()
        call = Earlier(queue=queue, entry=delivery.entry, session=session)
        return None, await call.run_on_queue(self._router) or ()

    async def begin_attempt(self, session: str, epoch: str) -> None:
        """Count another attempt at a turn that may have killed its last owner."""
        lease = self._keys.lease(session)
        await Attempt(lease=lease, epoch=epoch, begins=True).run(self._router)

    async def survived(self, session: str, epoch: str) -> None:
        """Count no attempt so far: this one has made all the audio that it may make now."""
        lease = self._keys.lease(session)
        await Attempt(lease=lease, epoch=epoch, begins=False).run(self._router)

    async def release(self, session: str, epoch: str, *, blameless: bool) -> None:
        """Give up a turn before its end; ``blameless`` does not count against the request."""
        lease = self._keys.lease(session)
        await Release(lease=lease, epoch=epoch, blameless=blameless).run(self._router)

    async def mark_text(
        self, text_key: str, session: str, epoch: str, after: str, entry: str, piece: TextPiece
    ) -> int:
        """Add a decision to a turn's text stream; arguments and reply as of ``Mark``."""
        lease = self._keys.lease(session)
        call = Mark(
            lease=lease, text=text_key, epoch=epoch, after=after, entry=entry, fields=piece.encode()
        )
        return await call.run(self._router)

    async def abandon(self, session: str, entry: str, model: str, owner: str) -> None:
        """Give up an owner's turn that will never end, so that others need not wait for it."""
        # As ``Lease.decode`` read them: they may be debris.
        await Abandon(
            lease=self._keys.lease(session),
            entry=entry.encode("utf-8", "surrogateescape"),
            model=model.encode("utf-8", "surrogateescape"),
            owner=owner.encode("utf-8", "surrogateescape"),
        ).run(self._router)

    async def updated_ms(self, session: str) -> int:
        """When the session's record was last written: server unix ms, 0 where that is unknown."""
        key = self._keys.session(session)
        try:
            value = cast(bytes | None, await self._router.call(key, "HGET", key, "updated_ms"))
        except ReplyError:
            return 0  # a key of another type in the record's place
        return int(value) if value and value.isdigit() else 0

    async def touch(self, keys: Sequence[str]) -> None:
        """Keep keys of one session for another ``audio_ttl_s``."""
        await self._router.batch(keys[0], [("PEXPIRE", key, self._ttl_ms) for key in keys])


@contextmanager
def _cancelled_late(limit_s: float) -> Generator[None]:
    """Delay a cancellation until the end of the block, for ``limit_s`` at the most."""
    with anyio.CancelScope(shield=True) as scope:
        loop = asyncio.get_running_loop()
        timer = loop.call_later(limit_s, setattr, scope, "shield", False)
        try:
            yield
        finally:
            timer.cancel()
