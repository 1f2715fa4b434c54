"""One model's backlog: its requests that wait for a slot.

A pseudo consumer of the group holds them: ``backlog`` those that came while no slot was free,
``orphans`` those that were handed back, or whose worker died. ``backlog.lua`` says which is next.
"""

from collections.abc import Collection, Sequence
from typing import cast

from voicefleet.schemas.fields import paired
from voicefleet.schemas.keys import BACKLOG, GROUP, ORPHANS, Keys
from voicefleet.wire.link import ReplyError
from voicefleet.wire.router import Router
from voicefleet.worker.store.lease_states import Claim
from voicefleet.worker.store.queues import Delivery, deliveries_of, pending_entries
from voicefleet.worker.store.scripts.queue import Adopt, Keep, Park, Promote, Take
from voicefleet.worker.store.scripts.script import BacklogKeys


class Backlog:
    """The backlog of one model, as one worker uses it. Waits and raises as ``QueueStore``."""

    def __init__(self, router: Router, keys: Keys, model: str, worker: str) -> None:
        self._router = router
        self._model = model
        self._worker = worker
        self._queue = keys.requests(model)
        self._keeper = keys.keeper(model)
        self._keys = BacklogKeys.of(keys, model)

    async def keep(self, ttl_ms: int) -> bool:
        """Become the backlog's keeper for ``ttl_ms``, or stay it. Returns whether we are."""
        call = Keep(keeper=self._keeper, worker=self._worker, ttl_ms=ttl_ms)
        return await call.run(self._router)

    async def leave(self) -> None:
        """Stop being the backlog's keeper."""
        await self.keep(0)

    async def read(self, most: int) -> list[Delivery]:
        """Take up to ``most`` requests that no worker had yet, without waiting for any."""
        try:
            reply = await self._router.call(
                self._queue,
                *("XREADGROUP", "GROUP", GROUP, self._worker, "COUNT", most),
                *("STREAMS", self._queue, ">"),
            )
        except ReplyError:
            return []  # the queue is gone, or a key of another type is in its place
        return deliveries_of(self._model, reply)

    async def park(self, entries: Sequence[str]) -> None:
        """Let requests of ours wait for any worker's slot."""
        if entries:
            call = Park(keys=self._keys, worker=self._worker, entries=entries)
            await call.run_on_queue(self._router)

    async def promote(self, entry: str) -> None:
        """Put a parked request before its tenant's others: its session is in conversation."""
        call = Promote(keys=self._keys, worker=self._worker, entry=entry)
        await call.run_on_queue(self._router)

    async def take(self) -> Delivery | None:
        """Take the next request that waits for a slot: one handed back, or the backlog's."""
        call = Take(keys=self._keys, worker=self._worker)
        taken = await call.run_on_queue(self._router)
        return taken and Delivery(self._model, *taken)

    async def adopt(self, entry: str) -> Delivery | None:
        """Take this request, whichever is next; ``None``: it no longer waits for a slot."""
        call = Adopt(keys=self._keys, worker=self._worker, entry=entry)
        taken = await call.run_on_queue(self._router)
        return taken and Delivery(self._model, *taken)

    async def listed(self) -> dict[str, Claim] | None:
        """Entries that wait for a slot, with their claims; ``None``: there is no queue."""
        found: dict[str, Claim] = {}
        for consumer, claim in ((BACKLOG, Claim.FRESH), (ORPHANS, Claim.TAKE_OVER)):
            entries = await pending_entries(self._router, self._queue, consumer)
            if entries is None:
                return None
            found |= dict.fromkeys(entries, claim)
        return found

    async def look_up(self, entries: Collection[tuple[str, Claim]]) -> list[Delivery]:
        """Read requests on the queue; those that are gone are left out."""
        if not entries:
            return []
        reads = [("XRANGE", self._queue, entry, entry) for entry, _ in entries]
        replies = await self._router.batch(self._queue, reads)
        found: list[Delivery] = []
        for (entry, claim), reply in zip(entries, replies, strict=True):
            if isinstance(reply, list) and reply:
                ((_, flat),) = cast(list[tuple[bytes, list[bytes]]], reply)
                found.append(Delivery(self._model, entry, paired(flat), claim))
        return found
