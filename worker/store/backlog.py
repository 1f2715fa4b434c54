"""One model's backlog: requests that wait for a slot, as calls in one worker's name.

They are in the name of a pseudo consumer: ``backlog`` (they came while no slot was free) or
``orphans`` (they were given up, or their worker died). ``backlog.lua`` says who is served first.
"""

from collections.abc import Collection, Sequence
from typing import cast

from voicefleet.schemas.fields import paired
from voicefleet.schemas.keys import BACKLOG, GROUP, ORPHANS, Keys
from voicefleet.wire.link import Argument, Reply, ReplyError
from voicefleet.wire.router import Router
from voicefleet.worker.store import scripts
from voicefleet.worker.store.lease_states import Claim
from voicefleet.worker.store.ledger import Delivery
from voicefleet.worker.store.scripts import Script

MOST_LISTED = 10_000
"""So many requests of a backlog are looked after; those behind them wait unseen."""


class Backlog:
    """Calls on the backlog of one model. They wait out a server that is away."""

    def __init__(self, router: Router, keys: Keys, model: str, worker: str) -> None:
        self._router = router
        self._model = model
        self._worker = worker
        self._queue = keys.requests(model)
        self._keeper = keys.keeper(model)
        own = (keys.requests, keys.wake, keys.backlog, keys.books, keys.ranks)
        self._keys = [key(model) for key in own]

    async def keep(self, ttl_ms: int) -> bool:
        """Become the backlog's keeper for ``ttl_ms``, or stay it; whether we are it."""
        keys = [self._keeper]
        return await scripts.KEEP(self._router, keys, self._worker, ttl_ms) == 1

    async def leave(self) -> None:
        """Stop being its keeper."""
        await self.keep(0)

    async def read(self, most: int) -> list[Delivery]:
        """Take what is on the queue and was not delivered to anybody yet, without waiting."""
        try:
            reply = await self._router.call(
                self._queue,
                *("XREADGROUP", "GROUP", GROUP, self._worker, "COUNT", most),
                *("STREAMS", self._queue, ">"),
            )
        except ReplyError:
            return []  # the queue is gone, or something else is in its place
        if reply is None:
            return []
        (entries,) = cast(dict[bytes, list[tuple[bytes, list[bytes]]]], reply).values()
        return [Delivery(self._model, e.decode(), paired(flat), Claim.FRESH) for e, flat in entries]

    async def park(self, entries: Sequence[str]) -> None:
        """Let requests of ours wait for any worker's slot."""
        if entries:
            await self._run(scripts.PARK, *entries)

    async def promote(self, entry: str) -> None:
        """The session of a parked request is in conversation: those come first."""
        await self._run(scripts.PROMOTE, entry)

    async def take(self) -> Delivery | None:
        """The next request that waits for a slot: one that was given up, or the backlog's."""
        return self._delivery(await self._run(scripts.TAKE))

    async def adopt(self, entry: str) -> Delivery | None:
        """Take this request, whoever is next; ``None``: it does not wait for a slot any more."""
        return self._delivery(await self._run(scripts.ADOPT, entry))

    async def listed(self) -> dict[str, Claim] | None:
        """Entries that wait for a slot, and how each is to be claimed; ``None``: no queue."""
        found: dict[str, Claim] = {}
        for consumer, claim in ((BACKLOG, Claim.FRESH), (ORPHANS, Claim.TAKE_OVER)):
            try:
                reply = await self._router.call(
                    *(self._queue, "XPENDING", self._queue, GROUP, "-", "+", MOST_LISTED, consumer)
                )
            except ReplyError:
                return None
            found |= {item[0].decode(): claim for item in cast(list[list[bytes]], reply)}
        return found

    async def look_up(self, entries: Collection[tuple[str, Claim]]) -> list[Delivery]:
        """Read requests where they stand on the queue; those that are gone are left out."""
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

    def _delivery(self, reply: Reply) -> Delivery | None:
        if not reply:
            return None
        claim, entry, fields = cast(tuple[bytes, bytes, list[bytes]], reply)
        return Delivery(self._model, entry.decode(), paired(fields), Claim(claim.decode()))

    async def _run(self, script: Script, *args: Argument) -> Reply:
        shared = (GROUP, ORPHANS, BACKLOG, self._worker)
        return await script.on_queue(self._router, self._keys, *shared, *args)
