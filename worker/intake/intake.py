"""Intake: a free slot -> one request -> an assignment."""

from collections.abc import Sequence
from functools import partial

import anyio
import structlog
from anyio.abc import TaskGroup

from voicefleet.wire.connect import Topology
from voicefleet.worker.context import Rooms
from voicefleet.worker.intake.backlog_keeper import BacklogKeeper
from voicefleet.worker.intake.job import Assignment
from voicefleet.worker.intake.queue_reader import QueueReader
from voicefleet.worker.models.slots import Slot
from voicefleet.worker.store.ledger import Delivery

log = structlog.stdlib.get_logger(__name__)


class Intake:
    """Takes requests for all served models until it is closed.

    One reader a model, which reads only while a slot is free. What a reader gets when the last
    slot has just gone to another is handed back.
    """

    def __init__(self, rooms: Rooms, topology: Topology) -> None:
        self._rooms = rooms
        self._topology = topology
        self._assignments: set[Assignment] = set()
        self._readers: list[QueueReader] = []
        self._keepers: list[BacklogKeeper] = []
        self._closed = anyio.Event()
        self._left = anyio.Event()

    @property
    def assignments(self) -> frozenset[Assignment]:
        """What is in hand."""
        return frozenset(self._assignments)

    @property
    def speaking(self) -> int:
        """How many sessions are spoken here now."""
        return sum(assignment.is_speaking for assignment in self._assignments)

    @property
    def kept_keys(self) -> Sequence[Sequence[str]]:
        """Keys that must not expire meanwhile: a list for each request in hand, or looked after."""
        in_hand = [a.kept_keys for a in self._assignments if a.kept_keys]
        return in_hand + [keys for keeper in self._keepers for keys in keeper.kept_keys]

    async def run(self, tasks: TaskGroup) -> None:
        """Read until ``close``. Assignments run in ``tasks`` and may outlive this call."""
        async with anyio.create_task_group() as readers:
            for model in self._rooms.residency.served:
                readers.start_soon(self._read, model, tasks)

    def close(self) -> None:
        """Take no further request; those that wait for their session go to other workers."""
        self._closed.set()
        self._rooms.slots.announce()  # whoever waits for a slot need not wait any more
        for reader in self._readers:
            reader.wake()
        for assignment in self._assignments:
            if not assignment.is_speaking:
                assignment.hand_over()

    def hand_over(self) -> None:
        """Give everything to other workers, in mid-turn."""
        for assignment in self._assignments:
            assignment.hand_over()

    async def emptied(self) -> None:
        """Wait until nothing is in hand."""
        while self._assignments:
            await self._left.wait()

    async def _read(self, model: str, tasks: TaskGroup) -> None:
        slots = self._rooms.slots
        reader = QueueReader(self._rooms, self._topology, model, partial(self._entries_of, model))
        self._readers.append(reader)
        keeper = BacklogKeeper(self._rooms, model, partial(self._begin, tasks, slot=None))
        self._keepers.append(keeper)
        await self._rooms.ledger.create_group(model)
        async with reader.open(), anyio.create_task_group() as beside:
            beside.start_soon(self._stop_when_taken, reader, model)
            beside.start_soon(keeper.run)
            while not self._closed.is_set():
                if not slots.is_free(model):
                    await slots.wait_change()
                    reader.look()
                    continue
                delivery = await reader.next()
                if delivery is not None:
                    await self._accept(delivery, tasks)
            beside.cancel_scope.cancel()

    async def _stop_when_taken(self, reader: QueueReader, model: str) -> None:
        """Have the reader stop when the last slot is taken by a turn it did not read."""
        while True:
            await self._rooms.slots.wait_taken(model)
            reader.wake()
            await self._rooms.slots.wait_change()

    async def _accept(self, delivery: Delivery, tasks: TaskGroup) -> None:
        if delivery.entry in self._entries_of(delivery.model):
            return  # we were taken for dead, and were not: it goes on as it is
        slot = None if self._closed.is_set() else self._rooms.slots.try_take(delivery.model)
        if slot is None:
            await self._rooms.ledger.hand_back(delivery.model, [delivery.entry])
            return
        self._begin(tasks, delivery, slot)

    def _begin(self, tasks: TaskGroup, delivery: Delivery, slot: Slot | None) -> None:
        assignment = Assignment(self._rooms, delivery, slot, partial(self._begin, tasks))
        self._assignments.add(assignment)
        if self._closed.is_set():
            assignment.hand_over()
        tasks.start_soon(self._see_through, assignment)

    async def _see_through(self, assignment: Assignment) -> None:
        try:
            await assignment.run()
        finally:
            self._assignments.discard(assignment)
            self._left.set()
            self._left = anyio.Event()

    def _entries_of(self, model: str) -> set[str]:
        """Entries that are worked on: not those that are as good as gone."""
        return {
            a.delivery.entry
            for a in self._assignments
            if a.delivery.model == model and not a.is_leaving
        }
