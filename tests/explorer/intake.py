"""How requests come into a worker's hands: ``worker.queue_reader`` and ``worker.intake``."""

from collections.abc import Iterator

from tests.explorer import calls
from tests.explorer.ground import Ground
from tests.explorer.state import (
    Next,
    State,
    Worker,
    put,
    short,
)


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
        found = calls.delivered(call, reply)
        label = f"{label} -> {found and ' '.join(found)}"
        if found is None:
            stage = "checking" if reader.reconnects else "reading"
            read = () if reader.reconnects else (calls.read(worker.name),)
            return label, False, put(state, at, reader=reader._replace(stage=stage, call=read))
        entry, claim = found
        orphans = reader.orphans or call.kind == "take"
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

    def parking(self, state: State, at: int, worker: Worker) -> Iterator[Next]:
        """``Intake._answer_late``."""
        if worker.status == "up" and not self._ground.has_slot(worker):
            label = f"{worker.name}: expire"
            after, reply = self._ground.execute(state, calls.expire(worker.name), label)
            if after is not state:
                found = calls.expired(reply)
                tasks = [
                    self._script.begin(worker.name, entry, "fresh", slot=False) for entry in found
                ]
                after = put(after, at, tasks=(*worker.tasks, *tasks))
                yield f"{label} -> {short(reply[:1])} {' '.join(found)}", False, after
