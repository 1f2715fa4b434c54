"""Read one model's queue: one request at a time, and only when one is wanted."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import cast

import anyio
import structlog

from voicefleet.schemas.keys import GROUP, Keys
from voicefleet.wire.connect import Address, Topology
from voicefleet.wire.link import Link, LinkClosedError, Reply, ReplyError
from voicefleet.worker.control.key_watch import KeyWatch
from voicefleet.worker.store.backlog import Backlog
from voicefleet.worker.store.queues import Delivery, QueueStore, deliveries_of

log = structlog.stdlib.get_logger(__name__)

BLOCK_MS = 5_000
RING_AGAIN_S = 0.002
RETRY_S = 0.2


class QueueReader:
    """Reads one model's queue. Requests that wait for a slot come before new ones.

    A blocked read is never cancelled: its delivery would be stranded. The server ends it instead
    (CLIENT UNBLOCK). When a connection dies with a delivery on its way, the next connection finds
    the entry in the pending list and hands it back.

    Args:
        topology: Where connections of its own are opened: one that blocks, one that unblocks it.
        watch: Tells when a request was handed back or parked.
        queues: The models' queues.
        backlog: The model's requests that wait for a slot.
        keys: Names the queue and its wake key.
        worker: This worker's name, its consumer in the group.
        model: Whose queue is read.
        mine: Returns the queue entries that this worker has jobs for.
    """

    def __init__(
        self,
        topology: Topology,
        watch: KeyWatch,
        queues: QueueStore,
        backlog: Backlog,
        keys: Keys,
        worker: str,
        model: str,
        mine: Callable[[], set[str]],
    ) -> None:
        self._topology = topology
        self._watch = watch
        self._queues = queues
        self._backlog = backlog
        self._worker = worker
        self._model = model
        self._mine = mine
        self._key = keys.requests(model)
        self._wake_key = keys.wake(model)
        self._link: Link | None = None
        self._bell: Link | None = None
        self._address: Address | None = None
        self._client_id = 0
        self._is_up = True
        self._reading = False
        self._woken = False
        self._may_wait = True
        self._wake_value: Reply = None

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """Watch for requests that wait for a slot, for the time of the block."""
        key = self._wake_key
        try:
            async with self._watch.subscribe(key, lambda: ("GET", key), self._on_wake):
                yield
        finally:
            self._close()

    async def next(self) -> Delivery | None:
        """The next request; ``None`` after ``wake``, or when none came for ``BLOCK_MS``."""
        self._woken = False
        if self._may_wait:
            self._may_wait = False
            waiting = await self._backlog.take()
            if waiting is not None:
                self._may_wait = True  # there may be more
                return waiting
        try:
            link = self._link
            if link is None or link.closed or self._bell is None or self._bell.closed:
                link = await self._connect()
            delivery = None if self._woken else await self._read(link)
            if self._address == self._topology.owner(self._key):
                return delivery
            # The server is no longer the queue's owner: the new one does not know of this delivery.
            self._close()
            return None
        except LinkClosedError as error:
            self._warn("queue_lost", str(error))
        except ReplyError as error:
            self._warn("queue_refused", str(error))
            if str(error).startswith("NOGROUP"):
                await self._queues.create_group(self._model)
        self._close()
        await anyio.sleep(RETRY_S)
        return None

    def look(self) -> None:
        """Look first for requests that came while no slot was free."""
        self._may_wait = True

    def wake(self) -> None:
        """Make ``next`` return soon."""
        self._woken = True
        self._ring()

    async def _read(self, link: Link) -> Delivery | None:
        self._reading = True
        try:
            reply = await link.call(
                *("XREADGROUP", "GROUP", GROUP, self._worker, "COUNT", 1),
                *("BLOCK", BLOCK_MS, "STREAMS", self._key, ">"),
                timeout_s=BLOCK_MS / 1000 + self._topology.endpoint.timeout_s,
            )
        finally:
            self._reading = False
        self._is_up = True
        deliveries = deliveries_of(self._model, reply)
        if not deliveries:
            return None
        (delivery,) = deliveries
        return delivery

    def _ring(self) -> None:
        """End the blocked read."""
        if not (self._reading and self._woken):
            return
        if self._bell is not None:
            self._bell.submit([("CLIENT", "UNBLOCK", self._client_id)], self._rung)

    def _rung(self, replies: list[Reply] | LinkClosedError) -> None:
        if replies == [0]:  # the read does not block yet
            asyncio.get_running_loop().call_later(RING_AGAIN_S, self._ring)
        elif replies != [1] and self._link is not None:
            self._link.close()  # refused, or lost: closing ends the read

    async def _connect(self) -> Link:
        self._close()
        self._may_wait = True  # another server may have some
        await self._topology.refresh()
        owner = self._topology.owner(self._key)
        self._address = owner
        self._link = link = await self._topology.open_link(owner)
        self._bell = await self._topology.open_link(owner)
        self._client_id = cast(int, await link.call("CLIENT", "ID"))
        stranded = (await self._queues.pending(self._model) or set()) - self._mine()
        if stranded:
            log.info("stranded_requests", model=self._model, count=len(stranded))
            await self._queues.hand_back(self._model, stranded)
        return link

    def _warn(self, event: str, error: str) -> None:
        """Warn once, until a read succeeds again."""
        if self._is_up:
            log.warning(event, model=self._model, error=error)
        self._is_up = False

    def _on_wake(self, reply: Reply) -> None:
        if reply is not None and reply != self._wake_value:
            self._may_wait = True
            self.wake()
        self._wake_value = reply

    def _close(self) -> None:
        for link in (self._link, self._bell):
            if link is not None:
                link.close()
        self._link = self._bell = None
