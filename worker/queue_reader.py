"""Reads one model's queue: one request at a time, and none that nobody waits for."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast

import anyio
import structlog

from schemas.keys import GROUP
from wire.connect import Topology
from wire.link import Link, LinkClosedError, Reply, ReplyError
from worker.ledger import Delivery
from worker.rooms import Rooms

log = structlog.stdlib.get_logger(__name__)

BLOCK_MS = 5_000
RING_AGAIN_S = 0.002
RETRY_S = 0.2

Wake = Callable[[], Awaitable[object]]
"""Returns when a blocked read should return empty-handed."""


class QueueReader:
    """The reader of one model's queue. Requests that nobody owns come before new ones.

    A blocked read is ended by the server (CLIENT UNBLOCK) and never cancelled: what was delivered
    to a reader that had left would be stranded. Where a connection dies with a delivery on its
    way, the next one finds it in the pending list and hands it back.

    Args:
        mine: The entries of this queue that are in this worker's hands.
    """

    def __init__(
        self, rooms: Rooms, topology: Topology, model: str, mine: Callable[[], set[str]]
    ) -> None:
        self._rooms = rooms
        self._topology = topology
        self._model = model
        self._mine = mine
        self._key = rooms.keys.requests(model)
        self._link: Link | None = None
        self._bell: Link | None = None
        self._client_id = 0
        self._is_up = True
        self._orphans = True
        self._wake_value: Reply = None
        self._orphaned = anyio.Event()

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """Listen for orphaned requests for the time of the block."""
        key = self._rooms.keys.wake(self._model)
        try:
            async with self._rooms.watch.subscribe(key, lambda: ("GET", key), self._on_wake):
                yield
        finally:
            self._close()

    async def next(self, *wakes: Wake) -> Delivery | None:
        """The next request; ``None`` when one of ``wakes`` came first, or nothing for long."""
        if self._orphans:
            self._orphans = False
            orphan = await self._rooms.ledger.take_orphan(self._model)
            if orphan is not None:
                self._orphans = True  # there may be more
                return orphan
        try:
            return await self._read((*wakes, self._orphaned.wait))
        except LinkClosedError as error:
            if self._is_up:
                log.warning("queue_lost", model=self._model, error=str(error))
            self._is_up = False
        except ReplyError as error:
            await self._mend(error)
        self._close()
        await anyio.sleep(RETRY_S)
        return None

    async def _read(self, wakes: tuple[Wake, ...]) -> Delivery | None:
        link = self._link
        if link is None or link.closed or self._bell is None or self._bell.closed:
            link = await self._connect()
        reply: Reply = None
        error: LinkClosedError | ReplyError | None = None
        async with anyio.create_task_group() as bells:
            for wake in wakes:
                bells.start_soon(self._ring, wake)
            try:
                reply = await link.call(
                    *("XREADGROUP", "GROUP", GROUP, self._rooms.name, "COUNT", 1),
                    *("BLOCK", BLOCK_MS, "STREAMS", self._key, ">"),
                    timeout_s=BLOCK_MS / 1000 + self._topology.endpoint.timeout_s,
                )
            except (LinkClosedError, ReplyError) as failure:
                error = failure
            bells.cancel_scope.cancel()
        if error is not None:
            raise error
        if reply is None:
            return None
        ((entry, flat),) = next(
            iter(cast(dict[bytes, list[tuple[bytes, list[bytes]]]], reply).values())
        )
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        return Delivery(self._model, entry.decode(), fields, "fresh")

    async def _ring(self, wake: Wake) -> None:
        """End the blocked read once ``wake`` returns; it may not be blocked quite yet."""
        await wake()
        while self._bell is not None and not self._bell.closed:
            try:
                await self._bell.call("CLIENT", "UNBLOCK", self._client_id)
            except (LinkClosedError, ReplyError):
                break
            await anyio.sleep(RING_AGAIN_S)
        if self._link is not None:
            self._link.close()

    async def _connect(self) -> Link:
        self._close()
        await self._topology.refresh()
        owner = self._topology.owner(self._key)
        self._link = link = await self._topology.open_link(owner)
        self._bell = await self._topology.open_link(owner)
        self._client_id = cast(int, await link.call("CLIENT", "ID"))
        self._is_up = True
        ledger = self._rooms.ledger
        stranded = await ledger.pending(self._model) - self._mine()
        if stranded:
            log.info("stranded_requests", model=self._model, count=len(stranded))
            await ledger.hand_back(self._model, stranded)
        return link

    async def _mend(self, error: ReplyError) -> None:
        message = str(error)
        log.warning("queue_refused", model=self._model, error=message)
        if message.startswith("NOGROUP"):
            await self._rooms.ledger.create_group(self._model)
        elif "WRONGTYPE" in message:
            # Somebody's key where the queue belongs: theirs to remove, ours to wait for.
            with anyio.move_on_after(1):
                await self._orphaned.wait()

    def _on_wake(self, reply: Reply) -> None:
        if reply is not None and reply != self._wake_value:
            self._orphans = True
            self._orphaned.set()
            self._orphaned = anyio.Event()
        self._wake_value = reply

    def _close(self) -> None:
        for link in (self._link, self._bell):
            if link is not None:
                link.close()
        self._link = self._bell = None
