"""Everything that may happen next to a fleet and its server.

A step is one call executed by the server together with what its sender makes of the reply, or one
fault. Delays need no step of their own: a worker that stalls is one whose next step comes late. A
request that outlives its connection is a ghost: executed at any later time, answered to nobody.
"""

from collections.abc import Iterator
from typing import Any

from verify.model_check import calls
from verify.model_check.faults import Misfortunes
from verify.model_check.fleets import Fleet
from verify.model_check.ground import Ground
from verify.model_check.intake import Intake
from verify.model_check.server import Server
from verify.model_check.state import Next, Reader, State, Worker, numbered, put_task, short
from verify.model_check.turns import Turns


class World:
    """The steps of one fleet on one server."""

    def __init__(self, fleet: Fleet, server: Server) -> None:
        self.ground = Ground(fleet, server)
        self._intake = Intake(self.ground)
        self._turns = Turns(self.ground)
        self._misfortunes = Misfortunes(self.ground)
        self._interned: dict[Any, Any] = {}

    def first(self) -> State:
        """All requests are on the queue and nobody has looked yet."""
        fleet = self.ground.fleet
        workers = tuple(Worker(f"w{i + 1}") for i in range(fleet.workers))
        return self._settled(State(self.ground.begin(), workers, fleet.faults))

    def steps(self, state: State) -> Iterator[Next]:
        """Everything that may happen next; a failover may go back to before each change.

        Raises:
            Violation: One of them breaks a promise.
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
            yield from self._turns.auditing(state, at, worker)
            yield from self._intake.keeping(state, at, worker)
            yield from self._misfortunes.burying(state, at, worker)
            yield from self._misfortunes.ending(state, at, worker)
        for i, ghost in enumerate(state.ghosts):
            rest = (ghost[1:],) if len(ghost) > 1 else ()
            after = state._replace(ghosts=(*state.ghosts[:i], *rest, *state.ghosts[i + 1 :]))
            label = f"network: late {ghost[0]}"
            after, reply = self.ground.execute(after, ghost[0], label)
            yield f"{label} -> {short(reply)}", False, after
        yield from self._misfortunes.failing_over(state)

    def _settled(self, state: State) -> State:
        state = self._ticketed(state)
        workers = tuple(self._prompted(state, worker) for worker in state.workers)
        ghosts = tuple(sorted(state.ghosts))
        state = numbered(
            state._replace(workers=workers, ghosts=ghosts), self.ground.sessions, self.ground.script
        )
        known = self._interned
        workers = tuple(known.setdefault(worker, worker) for worker in state.workers)
        data = known.setdefault(state.data, state.data)
        return state._replace(workers=workers, data=data)

    def _ticketed(self, state: State) -> State:
        """Give each new call of ``acquire`` a ticket that nobody has: the lowest will do."""
        for at, worker in enumerate(state.workers):
            for task in worker.tasks:
                call = task.line[0] if task.line else None
                if call is None or call.kind != "acquire" or call.ticket:
                    continue
                others = [line for w in state.workers for t in w.tasks for line in t.line]
                others += [ghost for line in state.ghosts for ghost in line]
                taken = {other.ticket for other in others}
                for data in filter(None, (state.data, state.replica)):
                    taken.add(self.ground.ticket_held(data, call.session))
                free = next(str(n) for n in range(1, 100) if str(n) not in taken)
                line = (call._replace(ticket=free), *task.line[1:])
                state = put_task(state, at, task, task._replace(line=line))
        return state

    def _prompted(self, state: State, worker: Worker) -> Worker:
        """What a worker does without asking anybody: hear the wake key, go on to read."""
        reader = worker.reader
        if worker.status not in ("up", "draining"):
            return worker
        if reader.heard != state.data.wake:
            rung = reader.orphans or state.data.wake > 0
            reader = reader._replace(heard=state.data.wake, orphans=rung)
        if reader.stage == "idle" and worker.status == "up" and not self.ground.has_slot(worker):
            reader = reader._replace(orphans=True)
        if reader.stage == "idle" and self.ground.may_read(worker):
            if reader.orphans:
                call = (calls.take(worker.name),)
                reader = reader._replace(stage="taking", call=call, orphans=False)
            elif reader.reconnects:
                reader = reader._replace(stage="checking")
            else:
                reader = reader._replace(stage="reading", call=(calls.read(worker.name),))
        tasks = tuple(sorted(worker.tasks))
        worker = worker._replace(reader=reader, tasks=tasks)
        if worker.status == "draining" and not (tasks or worker.page) and reader.stage == "idle":
            worker = Worker(worker.name, "gone", Reader("off", orphans=False))
        return worker
