"""Take requests from the queues: one job for each, while a slot is free."""

from collections.abc import Sequence
from functools import partial

import anyio
import structlog
from anyio.abc import TaskGroup

from voicefleet.wire.connect import Topology
from voicefleet.worker.context import WorkerContext
from voicefleet.worker.intake.backlog_keeper import BacklogKeeper
from voicefleet.worker.intake.job import Job
from voicefleet.worker.intake.job_state import JobState
from voicefleet.worker.intake.queue_reader import QueueReader
from voicefleet.worker.models.slots import Slot
from voicefleet.worker.store.queues import Delivery

log = structlog.stdlib.get_logger(__name__)


class Intake:
    """Takes requests for all served models until it is closed, and holds their jobs.

    Each model has one reader, which reads only while a slot is free. A request that arrives when
    the last slot has just gone to another model is handed back.
    """

    def __init__(self, context: WorkerContext, topology: Topology) -> None:
        self._context = context
        self._topology = topology
        self._jobs: set[Job] = set()
        self._readers: list[QueueReader] = []
        self._keepers: list[BacklogKeeper] = []
        self._closed = anyio.Event()
        self._left = anyio.Event()

    @property
    def jobs(self) -> frozenset[Job]:
        """The jobs that are not through."""
        return frozenset(self._jobs)

    @property
    def speaking(self) -> int:
        """How many jobs speak now."""
        return sum(job.state is JobState.SPEAKING for job in self._jobs)

    @property
    def kept_keys(self) -> Sequence[Sequence[str]]:
        """Keys that must not expire: a list for each job, and each request in a kept backlog."""
        in_hand = [job.kept_keys for job in self._jobs if job.kept_keys]
        return in_hand + [keys for keeper in self._keepers for keys in keeper.kept_keys]

    async def run(self, tasks: TaskGroup) -> None:
        """Read until ``close``. The jobs run in ``tasks`` and may outlive this call."""
        async with anyio.create_task_group() as readers:
            for model in self._context.pool.served:
                readers.start_soon(self._read, model, tasks)

    def close(self) -> None:
        """Take no further request, and hand over all jobs that do not speak."""
        self._closed.set()
        self._context.slots.announce()  # wakes those that wait for a slot
        for reader in self._readers:
            reader.wake()
        for job in self._jobs:
            if job.state is not JobState.SPEAKING:
                job.hand_over()

    def hand_over(self) -> None:
        """Hand over all jobs, in mid-turn."""
        for job in self._jobs:
            job.hand_over()

    async def emptied(self) -> None:
        """Wait until no job is left."""
        while self._jobs:
            await self._left.wait()

    async def _read(self, model: str, tasks: TaskGroup) -> None:
        context, slots = self._context, self._context.slots
        reader = QueueReader(
            self._topology,
            context.watch,
            context.queues,
            context.backlogs[model],
            context.keys,
            context.name,
            model,
            partial(self._entries_of, model),
        )
        self._readers.append(reader)
        keeper = BacklogKeeper(context, model, partial(self._begin, tasks, slot=None))
        self._keepers.append(keeper)
        await context.queues.create_group(model)
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
        """End the reader's blocked read when something else takes the last slot."""
        while True:
            await self._context.slots.wait_taken(model)
            reader.wake()
            await self._context.slots.wait_change()

    async def _accept(self, delivery: Delivery, tasks: TaskGroup) -> None:
        if delivery.entry in self._entries_of(delivery.model):
            return  # others took us for dead and handed our entry back: its job goes on
        slot = None if self._closed.is_set() else self._context.slots.try_take(delivery.model)
        if slot is None:
            await self._context.queues.hand_back(delivery.model, [delivery.entry])
            return
        self._begin(tasks, delivery, slot)

    def _begin(self, tasks: TaskGroup, delivery: Delivery, slot: Slot | None) -> None:
        job = Job(self._context, delivery, slot, partial(self._begin, tasks))
        self._jobs.add(job)
        if self._closed.is_set():
            job.hand_over()
        tasks.start_soon(self._see_through, job)

    async def _see_through(self, job: Job) -> None:
        try:
            await job.run()
        finally:
            self._jobs.discard(job)
            self._left.set()
            self._left = anyio.Event()

    def _entries_of(self, model: str) -> set[str]:
        """The model's entries that have a job which is not done."""
        return {
            job.delivery.entry
            for job in self._jobs
            if job.delivery.model == model and not job.is_done
        }
