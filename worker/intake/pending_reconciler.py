"""PendingReconciler: what the pending lists say is in this worker's hands, and what really is.

The two come apart where a reply was lost, where a worker that stalled was taken for dead, and
where a server forgot. The pending list is right: it is what other workers go by.
"""

from collections.abc import Iterable

import structlog

from voicefleet.worker.intake.job import Job
from voicefleet.worker.store.queues import QueueStore

log = structlog.stdlib.get_logger(__name__)


class PendingReconciler:
    """Compares, each time it is asked. What was on its way at one time is there at the next.

    - An entry in our name that nobody here works on is handed back.
    - A request that waits here while its entry is in another's name is that worker's.
    """

    def __init__(self, queues: QueueStore, models: Iterable[str]) -> None:
        self._queues = queues
        self._models = tuple(models)
        self._stray: dict[str, set[str]] = {}
        self._foreign: dict[str, set[Job]] = {}

    @property
    def is_in_doubt(self) -> bool:
        """Whether something was apart the last time."""
        return any(self._stray.values()) or any(self._foreign.values())

    async def reconcile(self, jobs: Iterable[Job]) -> None:
        """Act on what is apart now and was the last time."""
        held: dict[str, dict[str, Job]] = {model: {} for model in self._models}
        for job in jobs:
            held[job.delivery.model][job.delivery.entry] = job
        for model, mine in held.items():
            pending = await self._queues.pending(model)
            if pending is None:
                continue
            stray = pending - mine.keys()
            lasting = stray & self._stray.get(model, set())
            if lasting:
                log.warning("stranded_requests", model=model, count=len(lasting))
                await self._queues.hand_back(model, lasting)
            self._stray[model] = stray - lasting
            waiting = {a for entry, a in mine.items() if entry not in pending and a.is_waiting}
            for job in waiting & self._foreign.get(model, set()):
                # Off the queue altogether, it is the server that forgot: it goes on here.
                if await self._queues.is_queued(model, job.delivery.entry):
                    job.dismiss()
            self._foreign[model] = waiting
