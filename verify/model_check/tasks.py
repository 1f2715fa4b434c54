"""One request in a worker, as ``worker.intake.job`` handles it: one call a step."""

from typing import Any, NamedTuple

from verify.model_check import calls
from verify.model_check.calls import Call
from verify.model_check.fleets import Fleet, Request
from verify.model_check.outboxes import Outboxes
from voicefleet.worker.publish.outbox import PublishOutcome
from voicefleet.worker.store.lease_states import Claim, Standing
from voicefleet.worker.store.scripts import queue
from voicefleet.worker.store.scripts.session import Acquired, Enqueued

CANCELLABLE = ("acquire", "enqueue", "waiting", "free")
"""Stages in which a drain hands the request back: it does not hold its session's lease."""


LEAVING = ("settle", "hand_back", "dropped")
"""Stages in which the worker is done with the request."""


class Task(NamedTuple):
    """A job. ``line`` holds its calls without a reply yet, in the order in which they were sent."""

    request: int
    claim: Claim
    stage: str
    line: tuple[Call, ...] = ()
    replies: tuple[Any, ...] = ()
    slot: bool = True
    queued: bool = False
    epoch: int = 0
    turn: int = 0
    attempts: int = 0
    outbox: int = -1


class Jobs:
    """What a job does after each reply. It has no state of its own."""

    def __init__(self, fleet: Fleet, outboxes: Outboxes) -> None:
        self.fleet = fleet
        self._outboxes = outboxes

    def request(self, task: Task) -> Request:
        """The request of a task."""
        return self.fleet.requests[task.request]

    def request_of_entry(self, entry: str) -> Request:
        """The request of an entry."""
        (request,) = (request for request in self.fleet.requests if request.entry == entry)
        return request

    def begin(self, worker: str, entry: str, claim: Claim, *, slot: bool = True) -> Task:
        """The job that ``Intake`` starts for a delivery."""
        index = self.fleet.requests.index(self.request_of_entry(entry))
        return self.acquire(worker, Task(index, claim, "acquire", slot=slot))

    def acquire(self, worker: str, task: Task) -> Task:
        """Ask for the lease; the task's ``turn`` and ``epoch`` are those of a lease to regain."""
        request = self.request(task)
        call = calls.acquire(
            request.session, request.name, request.entry, task.claim, worker, task.turn, task.epoch
        )
        return task._replace(stage="acquire", line=(call,))

    def enqueue(self, task: Task) -> Task:
        """The task while it asks for a place in its session's line."""
        request = self.request(task)
        call = calls.enqueue(request.session, request.name, request.entry)
        return task._replace(stage="enqueue", line=(call,), queued=True)

    def answered(self, worker: str, task: Task, reply: Any, epoch: int) -> Task | None:
        """The task after the reply to its last call; ``None``: it is finished."""
        task = task._replace(line=())
        if task.stage == "dropped":
            return None
        match task.stage, reply:
            case "acquire", Acquired(standing=Standing.NEW | Standing.TAKEN_OVER):
                return self._speak(task, epoch, reply, reply.attempts)
            case "acquire", Acquired(standing=Standing.CRASH_SUSPECTED):
                return self._suspect(task, epoch, reply)
            case "attempt", _:
                return task._replace(stage="speaking")
            case (("acquire" | "inquire"), Acquired(standing=Standing.ALREADY_ANSWERED)):
                return self._settle(task)
            case "acquire", Acquired(standing=Standing.WAITING) if task.queued:
                return task._replace(stage="waiting", slot=False)
            case "acquire", Acquired(standing=Standing.WAITING):
                return self.enqueue(task._replace(slot=False))
            case "enqueue", Enqueued(standing=Standing.HELD_ELSEWHERE):
                return None
            case "enqueue", Enqueued(standing=Standing.ALREADY_ANSWERED | Standing.SESSION_FULL):
                return self._settle(task)
            case (("enqueue" | "free"), _):
                return task._replace(stage="waiting")
            case "inquire", Acquired(standing=Standing.WAITING):
                return self.hand_back(worker, task)
            case ("settle", queue.UNANSWERED) | ("release", _):
                return self.hand_back(worker, task)
            case _:  # held elsewhere; settled; handed back
                return None

    def _speak(self, task: Task, epoch: int, acquired: Acquired, attempts: int) -> Task:
        request, turn, last = self.request(task), acquired.turn, acquired.last
        outbox = self._outboxes.open(request.session, request.name, turn, last)
        if request.is_rejected:
            outbox = self._outboxes.end_now(outbox, "rejected", "bad")
        elif request.is_late and last < 0:
            outbox = self._outboxes.end_now(outbox, "expired", "")
        elif attempts > self.fleet.max_deliveries:
            outbox = self._outboxes.end_now(outbox, "failed", "max_deliveries")
        else:
            outbox = self._outboxes.start(outbox)
        return task._replace(
            stage="speaking", epoch=epoch, turn=turn, attempts=attempts, outbox=outbox
        )

    def _suspect(self, task: Task, epoch: int, acquired: Acquired) -> Task:
        """The request may have killed its last owner: count the attempt before it begins."""
        task = self._speak(task, epoch, acquired, acquired.attempts + 1)
        if self._outboxes.is_ending(task.outbox):
            return task
        call = calls.begin_attempt(self.request(task).session, epoch)
        return task._replace(stage="attempt", line=(call,))

    def conclude(self, worker: str, task: Task, outcome: PublishOutcome) -> Task:
        """``Job._conclude``."""
        request = self.request(task)
        if outcome is PublishOutcome.FORGOTTEN:
            again = Task(task.request, Claim.REGAIN, "acquire", epoch=task.epoch, turn=task.turn)
            return self.acquire(worker, again)
        done = Task(task.request, Claim.FRESH, "", slot=False)
        if outcome is PublishOutcome.ENDED:
            return self._settle(done)
        if outcome is PublishOutcome.FENCED:
            call = calls.acquire(
                request.session, request.name, request.entry, Claim.INQUIRE_ALIVE, worker
            )
            return self._leave(done, "inquire", call)
        return self._release(
            done, task.epoch, blameless=outcome is not PublishOutcome.ENGINE_FAILED
        )

    def _settle(self, task: Task) -> Task:
        request = self.request(task)
        return self._leave(
            task, "settle", calls.settle(request.session, request.name, request.entry)
        )

    def _release(self, task: Task, epoch: int, *, blameless: bool) -> Task:
        call = calls.release(self.request(task).session, epoch, blameless=blameless)
        return self._leave(task, "release", call)

    def hand_back(self, worker: str, task: Task) -> Task:
        """Hand back. A cancelled call is still executed before it: they share a connection."""
        before = task.line
        left = self._leave(task, "hand_back", calls.hand_back(worker, self.request(task).entry))
        return left._replace(line=(*before, *left.line))

    @staticmethod
    def _leave(task: Task, stage: str, call: Call) -> Task:
        return Task(task.request, Claim.FRESH, stage, (call,), slot=False)
