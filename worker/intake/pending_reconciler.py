"""Compare the pending lists with the jobs of this worker, and repair the differences.

They differ after a lost reply, after a stall that made others take this worker for dead, and after
a failover that forgot something. The pending list wins: it is what other workers act on.
"""

from collections.abc import Iterable

import structlog

from voicefleet.worker.intake.job import Job
from voicefleet.worker.store.queues import QueueStore

log = structlog.stdlib.get_logger(__name__)


class PendingReconciler:
    """Reconciles on call; acts on what differed twice, since a reply may be on its way.

    - An entry that is pending in our name and has no job is handed back.
    - A job that waits while its entry is pending in another worker's name is dropped.
    """

    def __init__(self, queues: QueueStore, models: Iterable[str]) -> None:
        self._queues = queues
        self._models = tuple(models)
        self._stray: dict[str, set[str]] = {}
        self._foreign: dict[str, set[Job]] = {}

    @property
    def is_in_doubt(self) -> bool:
        """Whether something differed in the last check."""
        return any(self._stray.values()) or any(self._foreign.values())

    async def reconcile(self, jobs: Iterable[Job]) -> None:
        """Reconcile entries that differed in this check and the previous one."""
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
            waiting = {
                job for entry, job in mine.items() if entry not in pending and job.is_waiting
            }
            for job in waiting & self._foreign.get(model, set()):
                # An entry that is off the queue was forgotten by the server: its job goes on.
                if await self._queues.is_queued(model, job.delivery.entry):
                    job.drop()
            self._foreign[model] = waiting
