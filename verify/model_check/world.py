"""Everything that may happen next to a fleet and its server.

A step is one call, executed by the server, and what its sender does with the reply; or one fault.
Delays need no steps: a worker that stalls is one whose next step comes late. A call that outlives
its connection is a ghost: it is executed at any later time, and nobody gets its reply.
"""

from collections.abc import Iterator
from typing import Any

from verify.model_check import calls
from verify.model_check.checked_fleet import CheckedFleet
from verify.model_check.faults import FaultSteps
from verify.model_check.fleets import Fleet
from verify.model_check.intake import Intake
from verify.model_check.server import Server
from verify.model_check.state import Next, Reader, State, Worker, numbered, put_task, short
from verify.model_check.turns import Turns


class World:
    """The steps of one fleet on one server."""

    def __init__(self, fleet: Fleet, server: Server) -> None:
        self.checked = CheckedFleet(fleet, server)
        self._intake = Intake(self.checked)
        self._turns = Turns(self.checked)
        self._faults = FaultSteps(self.checked)
        self._interned: dict[Any, Any] = {}

    def first(self) -> State:
        """The state in which all requests are on the queue and no worker has read any."""
        fleet = self.checked.fleet
        workers = tuple(Worker(f"w{i + 1}") for i in range(fleet.workers))
        return self._settled(State(self.checked.begin(), workers, fleet.faults))

    def steps(self, state: State) -> Iterator[Next]:
        """Everything that may happen next; a failover may go back to before each change.

        Raises:
            Violation: One of them breaks an invariant.
        """
        may_lag = state.left.failovers > 0 and state.replica is None
        for label, is_fault, after in self._steps(state):
            yield label, is_fault, self._settled(after)
            if may_lag and after.data != state.data:
                lagging = self._settled(after._replace(replica=state.data))
                yield f"{label}, which the replica misses", True, lagging

    def _steps(self, state: State) -> Iterator[Next]:
        for at, worker in enumerate(state.workers):
            if worker.status not in ("up", "draining"):
                continue
            yield from self._intake.reading(state, at, worker)
            for task in worker.tasks:
                yield from self._turns.working(state, at, worker, task)
            yield from self._turns.reconciling(state, at, worker)
            yield from self._intake.keeping(state, at, worker)
            yield from self._faults.declaring_dead(state, at, worker)
            yield from self._faults.ending(state, at, worker)
        for i, ghost in enumerate(state.ghosts):
            call, *later = ghost
            rest = (tuple(later),) if later else ()
            after = state._replace(ghosts=(*state.ghosts[:i], *rest, *state.ghosts[i + 1 :]))
            label = f"network: late {call}"
            after, reply = self.checked.execute(after, call, label)
            yield f"{label} -> {short(reply)}", False, after
        yield from self._faults.failing_over(state)

    def _settled(self, state: State) -> State:
        state = self._ticketed(state)
        workers = tuple(self._prompted(state, worker) for worker in state.workers)
        ghosts = tuple(sorted(state.ghosts))
        state = numbered(
            state._replace(workers=workers, ghosts=ghosts), self.checked.sessions, self.checked.jobs
        )
        known = self._interned
        workers = tuple(known.setdefault(worker, worker) for worker in state.workers)
        data = known.setdefault(state.data, state.data)
        return state._replace(workers=workers, data=data)

    def _ticketed(self, state: State) -> State:
        """Give each new call of ``acquire`` the lowest ticket that is not in use."""
        for at, worker in enumerate(state.workers):
            for task in worker.tasks:
                call = task.line[0] if task.line else None
                if call is None or call.kind != "acquire" or call.ticket:
                    continue
                others = [line for w in state.workers for t in w.tasks for line in t.line]
                others += [ghost for line in state.ghosts for ghost in line]
                taken = {other.ticket for other in others}
                for data in filter(None, (state.data, state.replica)):
                    taken.add(self.checked.ticket_held(data, call.session))
                free = next(str(n) for n in range(1, 100) if str(n) not in taken)
                line = (call._replace(ticket=free), *task.line[1:])
                state = put_task(state, at, task, task._replace(line=line))
        return state

    def _prompted(self, state: State, worker: Worker) -> Worker:
        """What a worker does without a call: see the wake key, start to take or read."""
        reader = worker.reader
        if worker.status not in ("up", "draining"):
            return worker
        if reader.seen_wake != state.data.wake:
            rung = reader.takes_first or state.data.wake > 0
            reader = reader._replace(seen_wake=state.data.wake, takes_first=rung)
        if reader.stage == "idle" and worker.status == "up" and not self.checked.has_slot(worker):
            reader = reader._replace(takes_first=True)
        if reader.stage == "idle" and self.checked.may_read(worker):
            if reader.takes_first:
                call = (calls.take(worker.name),)
                reader = reader._replace(stage="taking", call=call, takes_first=False)
            elif reader.reconnects:
                reader = reader._replace(stage="checking")
            else:
                reader = reader._replace(stage="reading", call=(calls.read(worker.name),))
        tasks = tuple(sorted(worker.tasks))
        worker = worker._replace(reader=reader, tasks=tasks)
        if worker.status == "draining" and not (tasks or worker.page) and reader.stage == "idle":
            worker = Worker(worker.name, "gone", Reader("off", takes_first=False))
        return worker
