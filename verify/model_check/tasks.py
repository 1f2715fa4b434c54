"""A request in a worker's hands, as ``worker.intake.job`` sees it through: one call a step."""

from typing import Any, NamedTuple

from verify.model_check import calls
from verify.model_check.calls import Call
from verify.model_check.fleets import Ask, Fleet
from verify.model_check.outboxes import Outboxes
from voicefleet.worker.publish.outbox import PublishOutcome
from voicefleet.worker.store.lease_states import Claim, Standing
from voicefleet.worker.store.scripts import queue
from voicefleet.worker.store.scripts.session import Acquired, Enqueued

CANCELLABLE = ("acquire", "enqueue", "waiting", "free")
"""Where a drain takes a request from: it does not hold its session's lease."""


LEAVING = ("settle", "hand_back", "dropped")
"""Where a request is as good as gone."""


class Task(NamedTuple):
    """An job. ``line`` is what it has sent and was not answered yet, in its order."""

    ask: int
    claim: str
    stage: str
    line: tuple[Call, ...] = ()
    replies: tuple[Any, ...] = ()
    slot: bool = True
    queued: bool = False
    epoch: int = 0
    turn: int = 0
    attempts: int = 0
    outbox: int = -1


class Script:
    """What an job does next, given a reply. Has no state of its own."""

    def __init__(self, fleet: Fleet, outboxes: Outboxes) -> None:
        self.fleet = fleet
        self._outboxes = outboxes

    def ask(self, task: Task) -> Ask:
        """The request that a task is about."""
        return self.fleet.asks[task.ask]

    def ask_of(self, entry: str) -> Ask:
        """The request of an entry."""
        (ask,) = (ask for ask in self.fleet.asks if ask.entry == entry)
        return ask

    def begin(self, worker: str, entry: str, claim: str, *, slot: bool = True) -> Task:
        """What ``Intake`` starts on a delivery."""
        index = self.fleet.asks.index(self.ask_of(entry))
        return self.acquire(worker, Task(index, claim, "acquire", slot=slot))

    def acquire(self, worker: str, task: Task) -> Task:
        """``turn`` and ``epoch`` are those of the claim that is made again, if any."""
        ask = self.ask(task)
        call = calls.acquire(
            ask.session, ask.name, ask.entry, task.claim, worker, task.turn, task.epoch
        )
        return task._replace(stage="acquire", line=(call,))

    def enqueue(self, task: Task) -> Task:
        ask = self.ask(task)
        call = calls.enqueue(ask.session, ask.name, ask.entry)
        return task._replace(stage="enqueue", line=(call,), queued=True)

    def answered(self, worker: str, task: Task, reply: Any, epoch: int) -> Task | None:
        """The task after the reply to its last call; ``None``: it is through."""
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
        ask, turn, last = self.ask(task), acquired.turn, acquired.last
        outbox = self._outboxes.open(ask.session, ask.name, turn, last)
        if ask.is_rejected:
            outbox = self._outboxes.end_now(outbox, "rejected", "bad")
        elif ask.is_late and last < 0:
            outbox = self._outboxes.end_now(outbox, "expired", "")
        elif attempts > self.fleet.max_deliveries:
            outbox = self._outboxes.end_now(outbox, "failed", "max_deliveries")
        else:
            outbox = self._outboxes.start(outbox)
        return task._replace(
            stage="speaking", epoch=epoch, turn=turn, attempts=attempts, outbox=outbox
        )

    def _suspect(self, task: Task, epoch: int, acquired: Acquired) -> Task:
        """Its last owner may have died of it: the attempt counts from now on."""
        task = self._speak(task, epoch, acquired, acquired.attempts + 1)
        if self._outboxes.is_ending(task.outbox):
            return task
        call = calls.begin_attempt(self.ask(task).session, epoch)
        return task._replace(stage="attempt", line=(call,))

    def conclude(self, worker: str, task: Task, outcome: PublishOutcome) -> Task:
        """``Job._conclude``."""
        ask = self.ask(task)
        if outcome is PublishOutcome.FORGOTTEN:
            again = Task(task.ask, Claim.REGAIN, "acquire", epoch=task.epoch, turn=task.turn)
            return self.acquire(worker, again)
        done = Task(task.ask, Claim.FRESH, "", slot=False)
        if outcome is PublishOutcome.ENDED:
            return self._settle(done)
        if outcome is PublishOutcome.FENCED:
            call = calls.acquire(ask.session, ask.name, ask.entry, Claim.INQUIRE_ALIVE, worker)
            return self._leave(done, "inquire", call)
        return self._release(
            done, task.epoch, blameless=outcome is not PublishOutcome.ENGINE_FAILED
        )

    def _settle(self, task: Task) -> Task:
        ask = self.ask(task)
        return self._leave(task, "settle", calls.settle(ask.session, ask.name, ask.entry))

    def _release(self, task: Task, epoch: int, *, blameless: bool) -> Task:
        call = calls.release(self.ask(task).session, epoch, blameless=blameless)
        return self._leave(task, "release", call)

    def hand_back(self, worker: str, task: Task) -> Task:
        """A cancelled call is executed all the same, before this one: they share a connection."""
        before = task.line
        left = self._leave(task, "hand_back", calls.hand_back(worker, self.ask(task).entry))
        return left._replace(line=(*before, *left.line))

    @staticmethod
    def _leave(task: Task, stage: str, call: Call) -> Task:
        return Task(task.ask, "", stage, (call,), slot=False)
