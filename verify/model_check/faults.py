"""Faults other than lost connections and engines: deaths, false deaths, drains, failovers."""

from collections.abc import Iterator

from verify.model_check import calls
from verify.model_check.checked_fleet import CheckedFleet
from verify.model_check.state import Next, Reader, State, Worker, put, replaced
from verify.model_check.tasks import CANCELLABLE


class FaultSteps:
    """The steps that are faults."""

    def __init__(self, checked: CheckedFleet) -> None:
        self._checked = checked
        self._jobs = checked.jobs

    def declaring_dead(self, state: State, at: int, worker: Worker) -> Iterator[Next]:
        """A worker declares another one dead, rightly or not."""
        for i, other in enumerate(state.workers):
            if i == at or not self._checked.queue(state).held_by(other.name):
                continue
            lives = other.status in ("up", "draining")
            if lives and not state.left.false_deaths:
                continue
            label = f"{worker.name}: hand back for {other.name}"
            after, reply = self._checked.execute(state, calls.hand_back(other.name), label)
            if lives:
                left = state.left._replace(false_deaths=state.left.false_deaths - 1)
                after = put(after._replace(left=left), i, suspected=True)
            yield f"{label}{', which is alive' * lives} -> {reply}", lives, after

    def ending(self, state: State, at: int, worker: Worker) -> Iterator[Next]:
        """A worker crashes or drains."""
        others = [w for i, w in enumerate(state.workers) if i != at]
        if all(other.status != "up" for other in others):
            return
        if state.left.crashes:
            left = state.left._replace(crashes=state.left.crashes - 1)
            dead = Worker(worker.name, "dead", Reader("off", takes_first=False))
            after = state._replace(left=left, workers=replaced(state.workers, at, dead))
            yield f"{worker.name}: is killed", True, after
            if state.left.losses:
                lines = [worker.reader.call, *(task.line for task in worker.tasks)]
                for line in filter(None, lines):
                    label = f"{worker.name}: is killed, {line[0]} is on its way"
                    yield label, True, self._checked.lose(after, line)
        if state.left.drains and worker.status == "up":
            left = state.left._replace(drains=state.left.drains - 1)
            tasks = tuple(
                self._jobs.hand_back(worker.name, t) if t.stage in CANCELLABLE else t
                for t in worker.tasks
            )
            after = put(state._replace(left=left), at, status="draining", tasks=tasks)
            yield f"{worker.name}: drains", True, after

    def failing_over(self, state: State) -> Iterator[Next]:
        """The replica, which lacks what it did not hear, becomes the server."""
        if state.replica is None or state.replica == state.data:
            return
        forgotten = list(state.forgotten)
        for key in self._checked.audio:
            there = {entry for entry, _ in self._checked.content_of(state.replica, key)}
            now = self._checked.content_of(state.data, key)
            forgotten += [(key, entry, flat) for entry, flat in now if entry not in there]
        workers = tuple(self._reconnected(worker) for worker in state.workers)
        left = state.left._replace(failovers=state.left.failovers - 1)
        after = State(state.replica, workers, left, (), None, tuple(sorted(set(forgotten))))
        yield "server: fails over to the replica", True, after

    def _reconnected(self, worker: Worker) -> Worker:
        """What was sent to the old server without a reply is sent again."""
        reader = worker.reader
        if worker.status not in ("up", "draining"):
            return worker
        if reader.stage == "reading":
            reader = reader._replace(stage="idle", call=())
        tasks = tuple(
            task._replace(
                line=(), replies=(), outbox=self._checked.outboxes.unanswered(task.outbox)
            )
            if task.stage == "speaking"
            else task
            for task in worker.tasks
        )
        return worker._replace(reader=reader._replace(reconnects=True), tasks=tasks)
