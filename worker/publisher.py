"""The publisher: one pipelined flush a tick for all turns of the worker.

First frames, pauses and ends do not wait for the tick: whoever has something that may leave kicks
its lane. One batch is in flight on a lane at a time, so a slow server makes batches larger, never
the queue longer.
"""

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import cast

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from wire.connect import Address, Topology
from wire.link import Command, Link, LinkClosedError, Reply, ReplyError
from worker import scripts
from worker.outbox import Fate, Outbox
from worker.pacing import TickClock

log = structlog.stdlib.get_logger(__name__)

RETRY_S = 0.05


class _Lane:
    """The connection to one server and the turns whose sessions it owns."""

    def __init__(self, address: Address, ticks: TickClock) -> None:
        self.address = address
        self.ticks = ticks
        self.outboxes: set[Outbox] = set()
        self.kicked = anyio.Event()

    def kick(self) -> None:
        self.kicked.set()

    async def flush_until_lost(self, link: Link) -> None:
        while not link.closed:
            await self._next()
            self.kicked = anyio.Event()
            await self._flush(link)

    async def _next(self) -> None:
        """Wait for a kick, or for the next tick while anyone speaks."""
        if not self.outboxes:
            await self.kicked.wait()
            return
        due = self.ticks.at(self.ticks.tick() + 1) - time.monotonic()
        with anyio.move_on_after(due):
            await self.kicked.wait()

    async def _flush(self, link: Link) -> None:
        tick = self.ticks.tick()
        commands: list[Command] = []
        senders: list[tuple[Outbox, int]] = []
        for outbox in self.outboxes:
            wanted = outbox.collect(tick)
            if wanted:
                senders.append((outbox, len(wanted)))
                commands += wanted
        if not commands:
            return
        try:
            replies = await link.batch(commands)
        except BaseException:
            for outbox, _ in senders:
                outbox.unanswered()
            raise
        at = 0
        for outbox, count in senders:
            self._report(link, outbox, replies[at : at + count])
            at += count

    def _report(self, link: Link, outbox: Outbox, replies: Sequence[Reply]) -> None:
        refused = next((str(reply) for reply in replies if isinstance(reply, ReplyError)), None)
        if refused is None:
            outbox.confirm(cast(Sequence[int], replies))
            return
        outbox.unanswered()
        if "WRONGTYPE" in refused or refused.startswith("ERR "):
            # A key of another type, a stream whose ids have come to their end: for good.
            log.warning("append_impossible", session=outbox.opening.session, error=refused)
            outbox.settle(Fate.REFUSED)
        else:
            # The scripts are unknown, the slot moved, the server is a replica now, or is loading:
            # a new connection, to whoever is in charge, puts it right.
            log.warning("append_refused", session=outbox.opening.session, error=refused)
            link.close()


class Publisher:
    """All lanes of a worker. ``run`` owns them; ``open`` puts a turn on its lane."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._ticks = TickClock()
        self._lanes: dict[Address, _Lane] = {}
        self._tasks: TaskGroup | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Own the connections until cancelled."""
        async with anyio.create_task_group() as self._tasks:
            task_status.started()
            await anyio.sleep_forever()

    @contextmanager
    def open(self, outbox: Outbox) -> Generator[None]:
        """Publish a turn for the time of the block."""
        self._place(outbox)
        try:
            yield
        finally:
            for lane in self._lanes.values():
                lane.outboxes.discard(outbox)

    def _place(self, outbox: Outbox) -> None:
        if self._tasks is None:
            raise RuntimeError("the publisher is not running")
        address = self._topology.owner(outbox.opening.keys[1])
        lane = self._lanes.get(address)
        if lane is None:
            lane = self._lanes[address] = _Lane(address, self._ticks)
            self._tasks.start_soon(self._serve, lane)
        lane.outboxes.add(outbox)
        outbox.kick = lane.kick
        lane.kick()

    async def _serve(self, lane: _Lane) -> None:
        """Keep one lane's connection up; when its sessions move, move them."""
        structlog.contextvars.clear_contextvars()  # those of the turn that opened the lane
        lost = False
        while True:
            try:
                link = await self._topology.open_link(lane.address, on_lost=lane.kick)
                try:
                    for script in (scripts.APPEND, scripts.FINISH):
                        await link.call("SCRIPT", "LOAD", script.source)
                    lane.kick()
                    lost = False
                    await lane.flush_until_lost(link)
                finally:
                    link.close()
            except (LinkClosedError, ReplyError) as error:
                if not lost:
                    log.warning("publisher_lost", server=str(lane.address), error=str(error))
                lost = True
            await anyio.sleep(RETRY_S)
            try:
                await self._topology.refresh()
            except LinkClosedError:
                continue
            for outbox in list(lane.outboxes):
                if self._topology.owner(outbox.opening.keys[1]) != lane.address:
                    lane.outboxes.discard(outbox)
                    self._place(outbox)
