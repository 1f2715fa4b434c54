"""A fleet and its server as one value."""

from typing import Any, NamedTuple, cast

from verify.model_check.calls import Call
from verify.model_check.fleets import Faults
from verify.model_check.tasks import Jobs, Task
from voicefleet.worker.store.scripts.session import Acquired, Enqueued

EPOCH_STEP = 1_000
Line = tuple[Call, ...]


class Reader(NamedTuple):
    """``worker.intake.queue_reader``: its stage, its call, the wake key's version that it saw last.

    ``takes_first``: it tries to take a waiting request before it reads new ones.
    """

    stage: str = "idle"
    call: Line = ()
    takes_first: bool = True
    seen_wake: int = 0
    reconnects: bool = False


class Worker(NamedTuple):
    """``status`` is up, draining, gone or dead; a ``suspected`` one was falsely declared dead.

    ``mismatches`` is what ``worker.intake.pending_reconciler`` found last: entries that the worker
    has and no job for, and entries of its waiting jobs that another worker has. ``page`` is what
    ``worker.intake.backlog_keeper`` has read and not parked yet.
    """

    name: str
    status: str = "up"
    reader: Reader = Reader()
    tasks: tuple[Task, ...] = ()
    mismatches: tuple[str, ...] = ()
    page: tuple[str, ...] = ()
    suspected: bool = False


class Data(NamedTuple):
    """The server's data as numbers: values of keys, epochs of sessions, the wake key's version."""

    values: tuple[int, ...]
    epochs: tuple[int, ...]
    wake: int = 0


class State(NamedTuple):
    """A fleet and its server. ``replica``: the data after a failover; ``ghosts``: late calls."""

    data: Data
    workers: tuple[Worker, ...]
    left: Faults
    ghosts: tuple[Line, ...] = ()
    replica: Data | None = None
    forgotten: tuple[tuple[str, str, Any], ...] = ()


Next = tuple[str, bool, State]
"""A step: what happens, whether it is a fault, and the state after it."""


class Violation(Exception):
    """A step that breaks an invariant."""

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


def epochs_of(state: State, session: int, jobs: Jobs) -> set[int]:
    """Every epoch of a session that the server, a worker or a late call holds."""
    found = {0, state.data.epochs[session]}
    if state.replica is not None:
        found.add(state.replica.epochs[session])
    name = jobs.fleet.sessions[session]
    for worker in state.workers:
        for task in worker.tasks:
            if jobs.request(task).session == name:
                found.add(task.epoch)
                found.update(call.epoch for call in task.line)
    for ghost in state.ghosts:
        found.update(call.epoch for call in ghost if call.session == name)
    return found


def numbered(state: State, sessions: dict[str, int], jobs: Jobs) -> State:
    """The same state with epochs and wake versions renumbered: only their order matters."""
    ranks: dict[str, dict[int, int]] = {}
    for name, i in sessions.items():
        found = sorted(epochs_of(state, i, jobs))
        if found != [rank * EPOCH_STEP for rank in range(len(found))]:
            ranks[name] = {epoch: rank * EPOCH_STEP for rank, epoch in enumerate(found)}
    if ranks:
        state = _renamed(state, sessions, ranks, jobs)
    versions = {0, state.data.wake, *(worker.reader.seen_wake for worker in state.workers)}
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
            w._replace(reader=w.reader._replace(seen_wake=wakes[w.reader.seen_wake]))
            for w in state.workers
        ),
    )


def _renamed(
    state: State, sessions: dict[str, int], ranks: dict[str, dict[int, int]], jobs: Jobs
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
        rank = ranks.get(jobs.request(task).session)
        if rank is None:
            return task
        return task._replace(epoch=rank[task.epoch], line=of_line(task.line))

    return state._replace(
        data=of_data(state.data),
        replica=state.replica and of_data(state.replica),
        ghosts=tuple(sorted(of_line(ghost) for ghost in state.ghosts)),
        workers=tuple(w._replace(tasks=tuple(map(of_task, w.tasks))) for w in state.workers),
    )
