"""The queue of each model: who has which request, and what becomes of one that is done."""

from collections.abc import Iterable
from typing import cast

import msgspec
import structlog

from voicefleet.schemas import records
from voicefleet.schemas.audio import Reason
from voicefleet.schemas.fields import paired
from voicefleet.schemas.keys import BACKLOG, GROUP, ORPHANS, Keys
from voicefleet.schemas.records import MAX_DEAD_LETTERS, DeadLetter
from voicefleet.wire.link import Reply, ReplyError
from voicefleet.wire.router import Router
from voicefleet.worker.store.lease_states import Claim
from voicefleet.worker.store.scripts.queue import UNANSWERED, Later, Orphan, Settle
from voicefleet.worker.store.scripts.script import OrderKeys

log = structlog.stdlib.get_logger(__name__)

MAX_PENDING = 10_000
"""How many of a consumer's pending requests are looked at."""


class Delivery(msgspec.Struct, frozen=True):
    """One entry of a model's queue in this worker's hands.

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


def deliveries_of(model: str, reply: Reply) -> list[Delivery]:
    """The requests in a reply to ``XREADGROUP`` on the model's queue; none where it is nil."""
    if reply is None:
        return []
    (entries,) = cast(dict[bytes, list[tuple[bytes, list[bytes]]]], reply).values()
    return [Delivery(model, entry.decode(), paired(flat), Claim.FRESH) for entry, flat in entries]


async def pending_entries(router: Router, queue: str, consumer: str) -> set[str] | None:
    """Entries of a queue that are in a consumer's name; ``None``: there is no queue."""
    query = ("XPENDING", queue, GROUP, "-", "+", MAX_PENDING, consumer)
    try:
        reply = await router.call(queue, *query)
    except ReplyError:
        return None
    return {item[0].decode() for item in cast(list[list[bytes]], reply)}


class QueueStore:
    """The models' queues, as one worker uses them.

    Every call waits while the server is away, loading or failing over. ``ReplyError`` is a refusal
    that the same call would meet again.
    """

    def __init__(self, router: Router, keys: Keys, worker: str) -> None:
        self._router = router
        self._keys = keys
        self._worker = worker

    async def create_group(self, model: str) -> None:
        """Create the model's queue and its group, which begins with the queue's first entry."""
        try:
            key = self._keys.requests(model)
            await self._router.call(key, "XGROUP", "CREATE", key, GROUP, "0", "MKSTREAM")
        except ReplyError as error:
            if not str(error).startswith(("BUSYGROUP", "WRONGTYPE")):
                raise

    async def hand_back(self, model: str, entries: Iterable[str]) -> int:
        """Hand back requests that this worker has. Returns how many it had."""
        return await self._orphan(model, self._worker, tuple(entries))

    async def hand_back_all(self, model: str, worker: str) -> int:
        """Hand back all requests of a dead worker, and remove it from the group."""
        return await self._orphan(model, worker, ())

    async def _orphan(self, model: str, owner: str, entries: tuple[str, ...]) -> int:
        requests, wake = self._keys.requests(model), self._keys.wake(model)
        call = Orphan(requests=requests, wake=wake, owner=owner, entries=entries)
        return await call.run_on_queue(self._router) or 0

    async def owners(self, model: str) -> set[str]:
        """Workers that have requests of the model, or had some, living or dead."""
        key = self._keys.requests(model)
        try:
            reply = await self._router.call(key, "XINFO", "CONSUMERS", key, GROUP)
        except ReplyError:
            return set()  # no queue yet, or a key of another type in its place
        consumers = cast(list[dict[bytes, bytes]], reply)
        names = {consumer[b"name"].decode("utf-8", "replace") for consumer in consumers}
        return names - {ORPHANS, BACKLOG}

    async def pending(self, model: str) -> set[str] | None:
        """Entries of the model's queue that this worker has; ``None``: there is no queue."""
        return await pending_entries(self._router, self._keys.requests(model), self._worker)

    async def is_queued(self, model: str, entry: str) -> bool:
        """Whether a request is still on the queue; both names may come from a damaged lease."""
        if not (model.isprintable() and entry.isprintable()):
            return False
        key = self._keys.requests(model)
        try:
            return bool(await self._router.call(key, "XRANGE", key, entry, entry))
        except ReplyError:
            return False  # not an entry id, or a key of another type in the queue's place

    async def is_added_later(self, delivery: Delivery, session: str, request: str) -> bool:
        """Whether the session's request of this name stands behind the delivery in its queue."""
        queue = OrderKeys.of(self._keys, delivery.model)
        call = Later(queue=queue, entry=delivery.entry, session=session, request=request)
        return await call.run_on_queue(self._router) or False

    async def settle(self, delivery: Delivery, session: str | None, request: str) -> bool:
        """Acknowledge and delete a request that is done.

        With the ``session`` in which it was answered: returns ``False``, and leaves the request,
        where a failover has forgotten the answer. (Not checked on a Cluster, where the session may
        be on another server.)
        """
        lease = spoken = None
        if session is not None and not self._router.topology.is_sharded:
            lease, spoken = self._keys.lease(session), self._keys.spoken(session)
        call = Settle(
            queue=OrderKeys.of(self._keys, delivery.model),
            lease=lease,
            spoken=spoken,
            entry=delivery.entry,
            model=delivery.model,
            request=request,
        )
        return await call.run_on_queue(self._router) != UNANSWERED

    async def add_dead_letter(
        self, delivery: Delivery, session: str | None, request: str, reason: Reason, error: str
    ) -> None:
        """Record in ``tts:dead`` that no worker may try this request again, and why."""
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
