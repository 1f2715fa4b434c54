"""How requests come into a worker's hands: the rooms of ``worker.intake``."""

from collections.abc import Iterator

from verify.model_check import calls
from verify.model_check.calls import KEYS, MODEL
from verify.model_check.ground import Ground
from verify.model_check.state import Next, State, Worker, put, short
from voicefleet.schemas.keys import BACKLOG, ORPHANS
from voicefleet.worker.store.lease_states import Claim, Standing


class Intake:
    """The steps of readers."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._script = ground.script

    def reading(self, state: State, at: int, worker: Worker) -> Iterator[Next]:
        reader, name = worker.reader, worker.name
        match reader.stage:
            case "reading":
                if self._ground.queue(state).undelivered:
                    yield self._deliver(state, at, worker)
                if not self._ground.may_read(worker) or reader.orphans:
                    idle = reader._replace(stage="idle", call=())
                    yield f"{name}: stop reading", False, put(state, at, reader=idle)
                if state.left.losses and self._ground.queue(state).undelivered:
                    lost = reader._replace(stage="checking", call=())
                    after = self._ground.lose(state, reader.call)
                    yield (
                        f"{name}: lose the reader's connection",
                        True,
                        put(after, at, reader=lost),
                    )
            case "taking":
                yield self._deliver(state, at, worker)
                yield from self._losing_reader(state, worker)
            case "checking":
                stranded = self._ground.stranded(state, worker)
                reader = reader._replace(reconnects=False, orphans=True)
                after = reader._replace(stage="reading", call=(calls.read(name),))
                if stranded:
                    back = calls.hand_back(name, *stranded)
                    after = reader._replace(stage="handing_back", call=(back,))
                yield f"{name}: connect, stranded {stranded}", False, put(state, at, reader=after)
            case "handing_back":
                idle = reader._replace(stage="idle", call=())
                label = f"{name}: {reader.call[0]}"
                after, reply = self._ground.execute(state, reader.call[0], label)
                yield f"{label} -> {reply}", False, put(after, at, reader=idle)
                yield from self._losing_reader(state, worker)

    def _deliver(self, state: State, at: int, worker: Worker) -> Next:
        reader, call = worker.reader, worker.reader.call[0]
        label = f"{worker.name}: {call.kind}"
        state, reply = self._ground.execute(state, call, label)
        label = f"{label} -> {short(reply)}"
        if reply is None:
            stage = "checking" if reader.reconnects else "reading"
            read = () if reader.reconnects else (calls.read(worker.name),)
            return label, False, put(state, at, reader=reader._replace(stage=stage, call=read))
        entry, _, claim = reply
        orphans = reader.orphans or call.kind != calls.READ
        reader = reader._replace(stage="idle", call=(), orphans=orphans)
        if entry in self._ground.worked_on(worker):
            return label, False, put(state, at, reader=reader)
        if not self._ground.may_read(worker):
            back = (calls.hand_back(worker.name, entry),)
            reader = reader._replace(stage="handing_back", call=back)
            return label, False, put(state, at, reader=reader)
        tasks = (*worker.tasks, self._script.begin(worker.name, entry, claim))
        return label, False, put(state, at, reader=reader, tasks=tasks)

    def _losing_reader(self, state: State, worker: Worker) -> Iterator[Next]:
        if state.left.losses:
            after = self._ground.lose(state, worker.reader.call)
            yield f"{worker.name}: lose the connection of {worker.reader.call[0]}", True, after

    def keeping(self, state: State, at: int, worker: Worker) -> Iterator[Next]:
        """Any worker without a slot may be the keeper (``worker.intake.backlog_keeper``)."""
        name, queue = worker.name, self._ground.queue(state)
        if worker.page:
            call = calls.park(name, worker.page[0])
            after, reply = self._ground.execute(state, call, f"{name}: {call}")
            yield f"{name}: {call} -> {reply}", False, put(after, at, page=())
        if worker.status != "up" or self._ground.has_slot(worker):
            return
        if queue.undelivered and not worker.page:
            call = calls.read(name)
            label = f"{name}: keeper reads"
            after, reply = self._ground.execute(state, call, label)
            entry, *_ = reply
            after = self._kept(after, at, worker, entry)
            if after.workers[at].page and not state.left.crashes:
                after = self._park_at_once(after, at, name, entry)
            yield f"{label} -> {entry}", False, after
        for entry in queue.held_by(BACKLOG):
            yield from self._listing(state, at, worker, entry)
        for entry in (*queue.held_by(BACKLOG), *queue.held_by(ORPHANS)):
            if self._script.ask_of(entry).is_unspoken:
                yield self._adopting(state, at, worker, entry)

    def _kept(self, state: State, at: int, worker: Worker, entry: str) -> State:
        """What the keeper makes of a request that it read."""
        if self._script.ask_of(entry).is_rejected:
            task = self._script.begin(worker.name, entry, Claim.FRESH, slot=False)
            return put(state, at, tasks=(*worker.tasks, task))
        return put(state, at, page=(entry,))

    def _park_at_once(self, state: State, at: int, name: str, entry: str) -> State:
        """Read, parked and listed in one step, where a death in between is not what is explored."""
        ask = self._script.ask_of(entry)
        listing = calls.enqueue(ask.session, ask.name, entry)
        for call in (calls.park(name, entry), listing):
            state, _ = self._ground.execute(state, call, f"{name}: {call}")
        return put(state, at, page=())

    def _listing(self, state: State, at: int, worker: Worker, entry: str) -> Iterator[Next]:
        """The keeper lets a parked request wait for its session."""
        ask = self._script.ask_of(entry)
        lease = dict(self._ground.content(state, KEYS.lease(ask.session)))
        if f"w:{entry}:{MODEL}" in lease:
            return
        call = calls.enqueue(ask.session, ask.name, entry)
        label = f"{worker.name}: keeper lists {entry}"
        after, reply = self._ground.execute(state, call, label)
        if reply.standing in (Standing.ALREADY_ANSWERED, Standing.SESSION_FULL):
            yield self._adopting(after, at, worker, entry)
        elif after is not state:
            yield f"{label} -> {short(reply)}", False, after

    def _adopting(self, state: State, at: int, worker: Worker, entry: str) -> Next:
        """The keeper takes out of the backlog what needs no slot."""
        call = calls.adopt(worker.name, entry)
        label = f"{worker.name}: {call}"
        after, reply = self._ground.execute(state, call, label)
        if reply is not None:
            entry, _, claim = reply
            task = self._script.begin(worker.name, entry, claim, slot=False)
            after = put(after, at, tasks=(*worker.tasks, task))
        return f"{label} -> {short(reply)}", False, after
