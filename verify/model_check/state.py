"""A fleet and its server as one value."""

from typing import Any, NamedTuple, cast

from verify.model_check.calls import Call
from verify.model_check.fleets import Faults
from verify.model_check.tasks import Script, Task
from voicefleet.worker.store.scripts.session import Acquired, Enqueued

EPOCH_STEP = 1_000
Line = tuple[Call, ...]


class Reader(NamedTuple):
    """``worker.intake.queue_reader``: what it is doing, and what it has heard of the wake key."""

    stage: str = "idle"
    call: Line = ()
    orphans: bool = True
    heard: int = 0
    reconnects: bool = False


class Worker(NamedTuple):
    """``status`` is up, draining, gone or dead; a ``suspected`` one was declared dead in error.

    ``apart`` is what ``worker.intake.pending_reconciler`` found last: entries in our name that
    nobody here works on, and entries that wait here and are in another's name. ``page`` is what
    ``worker.intake.backlog_keeper`` has read and not parked yet.
    """

    name: str
    status: str = "up"
    reader: Reader = Reader()
    tasks: tuple[Task, ...] = ()
    apart: tuple[str, ...] = ()
    page: tuple[str, ...] = ()
    suspected: bool = False


class Data(NamedTuple):
    """The server's: each key's value, each session's epoch, the wake key's version, as numbers."""

    values: tuple[int, ...]
    epochs: tuple[int, ...]
    wake: int = 0


class State(NamedTuple):
    """Everything. ``replica`` is what a failover would go back to."""

    data: Data
    workers: tuple[Worker, ...]
    left: Faults
    ghosts: tuple[Line, ...] = ()
    replica: Data | None = None
    forgotten: tuple[tuple[str, str, Any], ...] = ()


Next = tuple[str, bool, State]
"""A step: what happens, whether it is a fault, and the state after it."""


class Violation(Exception):
    """A step after which a promise is broken."""

    def __init__(self, label: str, broken: str) -> None:
        super().__init__(f"{label}: {broken}")
        self.label = label
        self.broken = broken


def short(reply: Any) -> str:
    """A reply as a trace shows it."""
    if isinstance(reply, Acquired | Enqueued):
        return reply.standing
    if isinstance(reply, tuple):  # a request and its claim
        entry, _, claim = cast(tuple[str, object, str], reply)
        return f"{entry} {claim}"
    return str(reply)


def replaced(items: tuple[Any, ...], at: int, item: Any) -> tuple[Any, ...]:
    """The same items but one."""
    return (*items[:at], item, *items[at + 1 :])


def put(state: State, at: int, **changes: Any) -> State:
    """The state with a changed worker."""
    worker = state.workers[at]._replace(**changes)
    return state._replace(workers=replaced(state.workers, at, worker))


def put_task(state: State, at: int, before: Task, after: Task | None) -> State:
    """The state with a changed task of a worker; ``None`` takes it off."""
    tasks = list(state.workers[at].tasks)
    tasks.remove(before)
    if after is not None:
        tasks.append(after)
    return put(state, at, tasks=tuple(tasks))


def epochs_of(state: State, session: int, script: Script) -> set[int]:
    """Every epoch of a session that anybody has in hand."""
    found = {0, state.data.epochs[session]}
    if state.replica is not None:
        found.add(state.replica.epochs[session])
    name = script.fleet.sessions[session]
    for worker in state.workers:
        for task in worker.tasks:
            if script.ask(task).session == name:
                found.add(task.epoch)
                found.update(call.epoch for call in task.line)
    for ghost in state.ghosts:
        found.update(call.epoch for call in ghost if call.session == name)
    return found


def numbered(state: State, sessions: dict[str, int], script: Script) -> State:
    """The same state with epochs and wake versions counted anew: only their order matters."""
    ranks: dict[str, dict[int, int]] = {}
    for name, i in sessions.items():
        found = sorted(epochs_of(state, i, script))
        if found != [rank * EPOCH_STEP for rank in range(len(found))]:
            ranks[name] = {epoch: rank * EPOCH_STEP for rank, epoch in enumerate(found)}
    if ranks:
        state = _renamed(state, sessions, ranks, script)
    versions = {0, state.data.wake, *(worker.reader.heard for worker in state.workers)}
    if state.replica is not None:
        versions.add(state.replica.wake)
    if max(versions) == len(versions) - 1:
        return state
    wakes = {version: rank for rank, version in enumerate(sorted(versions))}
    replica = state.replica
    return state._replace(
        data=state.data._replace(wake=wakes[state.data.wake]),
        replica=replica and replica._replace(wake=wakes[replica.wake]),
        workers=tuple(
            w._replace(reader=w.reader._replace(heard=wakes[w.reader.heard])) for w in state.workers
        ),
    )


def _renamed(
    state: State, sessions: dict[str, int], ranks: dict[str, dict[int, int]], script: Script
) -> State:
    def of_data(data: Data) -> Data:
        epochs = list(data.epochs)
        for name, rank in ranks.items():
            epochs[sessions[name]] = rank[epochs[sessions[name]]]
        return data._replace(epochs=tuple(epochs))

    def of_line(line: Line) -> Line:
        return tuple(
            call._replace(epoch=ranks[call.session][call.epoch])
            if call.epoch and call.session in ranks
            else call
            for call in line
        )

    def of_task(task: Task) -> Task:
        rank = ranks.get(script.ask(task).session)
        if rank is None:
            return task
        return task._replace(epoch=rank[task.epoch], line=of_line(task.line))

    return state._replace(
        data=of_data(state.data),
        replica=state.replica and of_data(state.replica),
        ghosts=tuple(sorted(of_line(ghost) for ghost in state.ghosts)),
        workers=tuple(w._replace(tasks=tuple(map(of_task, w.tasks))) for w in state.workers),
    )
