"""How workers get requests: ``worker.intake.queue_reader`` and ``backlog_keeper``."""

from collections.abc import Iterator

from verify.model_check import calls
from verify.model_check.calls import KEYS, MODEL
from verify.model_check.checked_fleet import CheckedFleet
from verify.model_check.state import Next, State, Worker, put, short
from voicefleet.schemas.keys import BACKLOG, ORPHANS
from voicefleet.worker.store.lease_states import Claim, Standing


class Intake:
    """The steps of queue readers and backlog keepers."""

    def __init__(self, checked: CheckedFleet) -> None:
        self._checked = checked
        self._jobs = checked.jobs

    def reading(self, state: State, at: int, worker: Worker) -> Iterator[Next]:
        """The steps of a worker's queue reader."""
        reader, name = worker.reader, worker.name
        match reader.stage:
            case "reading":
                if self._checked.queue(state).undelivered:
                    yield self._deliver(state, at, worker)
                if not self._checked.may_read(worker) or reader.takes_first:
                    idle = reader._replace(stage="idle", call=())
                    yield f"{name}: stop reading", False, put(state, at, reader=idle)
                if state.left.losses and self._checked.queue(state).undelivered:
                    lost = reader._replace(stage="checking", call=())
                    after = self._checked.lose(state, reader.call)
                    yield (
                        f"{name}: lose the reader's connection",
                        True,
                        put(after, at, reader=lost),
                    )
            case "taking":
                yield self._deliver(state, at, worker)
                yield from self._losing_reader(state, worker)
            case "checking":
                stranded = self._checked.stranded(state, worker)
                reader = reader._replace(reconnects=False, takes_first=True)
                after = reader._replace(stage="reading", call=(calls.read(name),))
                if stranded:
                    back = calls.hand_back(name, *stranded)
                    after = reader._replace(stage="handing_back", call=(back,))
                yield f"{name}: connect, stranded {stranded}", False, put(state, at, reader=after)
            case "handing_back":
                idle = reader._replace(stage="idle", call=())
                label = f"{name}: {reader.call[0]}"
                after, reply = self._checked.execute(state, reader.call[0], label)
                yield f"{label} -> {reply}", False, put(after, at, reader=idle)
                yield from self._losing_reader(state, worker)
            case _:  # idle, or off
                return

    def _deliver(self, state: State, at: int, worker: Worker) -> Next:
        reader, call = worker.reader, worker.reader.call[0]
        label = f"{worker.name}: {call.kind}"
        state, reply = self._checked.execute(state, call, label)
        label = f"{label} -> {short(reply)}"
        if reply is None:
            stage = "checking" if reader.reconnects else "reading"
            read = () if reader.reconnects else (calls.read(worker.name),)
            return label, False, put(state, at, reader=reader._replace(stage=stage, call=read))
        entry, _, claim = reply
        orphans = reader.takes_first or call.kind != calls.READ
        reader = reader._replace(stage="idle", call=(), takes_first=orphans)
        if entry in self._checked.worked_on(worker):
            return label, False, put(state, at, reader=reader)
        if not self._checked.may_read(worker):
            back = (calls.hand_back(worker.name, entry),)
            reader = reader._replace(stage="handing_back", call=back)
            return label, False, put(state, at, reader=reader)
        tasks = (*worker.tasks, self._jobs.begin(worker.name, entry, claim))
        return label, False, put(state, at, reader=reader, tasks=tasks)

    def _losing_reader(self, state: State, worker: Worker) -> Iterator[Next]:
        if state.left.losses:
            after = self._checked.lose(state, worker.reader.call)
            yield f"{worker.name}: lose the connection of {worker.reader.call[0]}", True, after

    def keeping(self, state: State, at: int, worker: Worker) -> Iterator[Next]:
        """Any worker without a slot may be the keeper (``worker.intake.backlog_keeper``)."""
        name, queue = worker.name, self._checked.queue(state)
        if worker.page:
            call = calls.park(name, worker.page[0])
            after, reply = self._checked.execute(state, call, f"{name}: {call}")
            yield f"{name}: {call} -> {reply}", False, put(after, at, page=())
        if worker.status != "up" or self._checked.has_slot(worker):
            return
        if queue.undelivered and not worker.page:
            call = calls.read(name)
            label = f"{name}: keeper reads"
            after, reply = self._checked.execute(state, call, label)
            entry, *_ = reply
            after = self._kept(after, at, worker, entry)
            if after.workers[at].page and not state.left.crashes:
                after = self._park_at_once(after, at, name, entry)
            yield f"{label} -> {entry}", False, after
        for entry in queue.held_by(BACKLOG):
            yield from self._listing(state, at, worker, entry)
        for entry in (*queue.held_by(BACKLOG), *queue.held_by(ORPHANS)):
            if self._jobs.request_of_entry(entry).is_unspoken:
                yield self._adopting(state, at, worker, entry)

    def _kept(self, state: State, at: int, worker: Worker, entry: str) -> State:
        """The keeper starts a job for a rejected request, and parks any other."""
        if self._jobs.request_of_entry(entry).is_rejected:
            task = self._jobs.begin(worker.name, entry, Claim.FRESH, slot=False)
            return put(state, at, tasks=(*worker.tasks, task))
        return put(state, at, page=(entry,))

    def _park_at_once(self, state: State, at: int, name: str, entry: str) -> State:
        """Read, park and list in one step where no crash in between is explored."""
        request = self._jobs.request_of_entry(entry)
        listing = calls.enqueue(request.session, request.name, entry)
        for call in (calls.park(name, entry), listing):
            state, _ = self._checked.execute(state, call, f"{name}: {call}")
        return put(state, at, page=())

    def _listing(self, state: State, at: int, worker: Worker, entry: str) -> Iterator[Next]:
        """The keeper lets a parked request wait for its session."""
        request = self._jobs.request_of_entry(entry)
        lease = dict(self._checked.content(state, KEYS.lease(request.session)))
        if f"w:{entry}:{MODEL}" in lease:
            return
        call = calls.enqueue(request.session, request.name, entry)
        label = f"{worker.name}: keeper lists {entry}"
        after, reply = self._checked.execute(state, call, label)
        if reply.standing in (Standing.ALREADY_ANSWERED, Standing.SESSION_FULL):
            yield self._adopting(after, at, worker, entry)
        elif after is not state:
            yield f"{label} -> {short(reply)}", False, after

    def _adopting(self, state: State, at: int, worker: Worker, entry: str) -> Next:
        """The keeper takes a request that needs no slot out of the backlog."""
        call = calls.adopt(worker.name, entry)
        label = f"{worker.name}: {call}"
        after, reply = self._checked.execute(state, call, label)
        if reply is not None:
            entry, _, claim = reply
            task = self._jobs.begin(worker.name, entry, claim, slot=False)
            after = put(after, at, tasks=(*worker.tasks, task))
        return f"{label} -> {short(reply)}", False, after
