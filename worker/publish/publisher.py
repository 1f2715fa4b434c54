"""The publisher: one pipelined flush a tick for all turns of the worker.

First frames, pauses and ends do not wait for the tick: the outbox requests a flush, and its lane
writes to the connection at once. A turn has at most one batch in flight, so that a slow server
gets larger batches, not more of them.
"""

import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import cast

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from voicefleet.wire.connect import Address, Topology
from voicefleet.wire.link import Command, Link, LinkClosedError, Reply, ReplyError
from voicefleet.worker.publish.outbox import Outbox, PublishOutcome
from voicefleet.worker.publish.pacing import TickClock
from voicefleet.worker.store.scripts.session import Append, Finish

log = structlog.stdlib.get_logger(__name__)

RETRY_S = 0.05

FULL = ("OOM", "MISCONF")
"""The server's memory or its disk is full: it refuses writes on every connection."""


class _Lane:
    """The connection to one server, and the outboxes of the turns whose sessions it owns."""

    def __init__(self, address: Address, ticks: TickClock, timeout_s: float) -> None:
        self.address = address
        self.outboxes: set[Outbox] = set()
        self._ticks = ticks
        self._timeout_s = timeout_s
        self._link: Link | None = None
        self._oldest_unanswered: float | None = None
        self._batches = 0
        self._occupied = anyio.Event()
        self._rests_until = 0.0

    def add(self, outbox: Outbox) -> None:
        outbox.request_flush = partial(self._send, (outbox,))
        self.outboxes.add(outbox)
        self._occupied.set()
        outbox.request_flush()

    async def serve(self, link: Link) -> None:
        """Flush at each tick while there are outboxes, until the connection is lost."""
        self._link = link
        self._batches, self._oldest_unanswered = 0, None
        try:
            while not link.closed:
                self._send(self.outboxes)
                if self.outboxes:
                    due = self._ticks.at(self._ticks.tick() + 1)
                    await anyio.sleep(max(0.0, due - time.monotonic()))
                else:
                    self._occupied = anyio.Event()
                    await self._occupied.wait()
                # A half-open connection accepts what is written and never replies.
                since = self._oldest_unanswered
                if since is not None and time.monotonic() - since > self._timeout_s:
                    raise LinkClosedError("no answer in time")
        finally:
            self._link = None
            link.close()

    def wake(self) -> None:
        """Notice a lost connection now."""
        self._occupied.set()

    def _send(self, outboxes: Iterable[Outbox]) -> None:
        """Collect what may be sent now, and send it in one write."""
        link = self._link
        if link is None or link.closed or time.monotonic() < self._rests_until:
            return  # there is a flush at the next tick, and when the lane is connected again
        tick = self._ticks.tick()
        commands: list[Command] = []
        senders: list[tuple[Outbox, int]] = []
        for outbox in outboxes:
            wanted = outbox.collect(tick)
            if wanted:
                senders.append((outbox, len(wanted)))
                commands += [call.command() for call in wanted]
        if commands:
            self._batches += 1
            if self._oldest_unanswered is None:
                self._oldest_unanswered = time.monotonic()
            link.submit(commands, partial(self._answered, link, senders))

    def _answered(
        self,
        link: Link,
        senders: Sequence[tuple[Outbox, int]],
        replies: list[Reply] | LinkClosedError,
    ) -> None:
        self._batches -= 1
        self._oldest_unanswered = time.monotonic() if self._batches else None
        if isinstance(replies, LinkClosedError):
            for outbox, _ in senders:
                outbox.unanswered()
            return
        at = 0
        for outbox, count in senders:
            self._report(link, outbox, replies[at : at + count])
            at += count

    def _report(self, link: Link, outbox: Outbox, replies: Sequence[Reply]) -> None:
        refused = next((str(reply) for reply in replies if isinstance(reply, ReplyError)), None)
        if refused is None:
            if outbox.confirm(cast(Sequence[int], replies)):
                self._send((outbox,))
            return
        hopeless = "WRONGTYPE" in refused or refused.startswith("ERR ")
        if isinstance(replies[0], ReplyError) and not hopeless:
            outbox.refused()
        else:  # calls before the refused one may have been executed
            outbox.unanswered()
        if hopeless:
            # The audio key holds higher ids than ours, for instance: trying again cannot help.
            log.warning("append_impossible", session=outbox.opening.session, error=refused)
            outbox.settle(PublishOutcome.UNWRITABLE)
        elif refused.startswith(FULL):
            log.warning("append_refused", session=outbox.opening.session, error=refused)
            self._rests_until = time.monotonic() + RETRY_S
        else:
            # The server does not know the scripts, does not own the slot any more, is a replica or
            # is loading: connect again, to the server that owns the slot by then.
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
            outbox.close_lane()
            for lane in self._lanes.values():
                lane.outboxes.discard(outbox)

    def _place(self, outbox: Outbox) -> None:
        if self._tasks is None:
            raise RuntimeError("the publisher is not running")
        address = self._topology.owner(outbox.opening.keys.audio)
        lane = self._lanes.get(address)
        if lane is None:
            timeout_s = self._topology.endpoint.timeout_s
            lane = self._lanes[address] = _Lane(address, self._ticks, timeout_s)
            self._tasks.start_soon(self._serve, lane)
        lane.add(outbox)

    async def _serve(self, lane: _Lane) -> None:
        """Keep one lane connected; move outboxes to other lanes when their sessions move."""
        structlog.contextvars.clear_contextvars()  # those of the turn that opened the lane
        lost = False
        while True:
            try:
                link = await self._topology.open_link(lane.address, on_lost=lane.wake)
                for kind in (Append, Finish):
                    await link.call("SCRIPT", "LOAD", kind.script.source)
                lost = False
                await lane.serve(link)
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
                if self._topology.owner(outbox.opening.keys.audio) != lane.address:
                    lane.outboxes.discard(outbox)
                    self._place(outbox)
