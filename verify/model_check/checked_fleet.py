"""Executes the calls of one fleet on the real server, and checks each change."""

from typing import Any, cast

from verify.model_check import calls
from verify.model_check.calls import KEYS, QUEUE, Call
from verify.model_check.fleets import Fleet
from verify.model_check.invariants import (
    BrokenInvariant,
    check_growth,
    check_memory,
    check_stream,
    has_end,
    is_complete,
)
from verify.model_check.outboxes import Outboxes
from verify.model_check.server import ABSENT, NEW, NONE, RAISED, Queue, RefusedError, Server
from verify.model_check.state import (
    EPOCH_STEP,
    Data,
    Line,
    State,
    Violation,
    Worker,
    epochs_of,
    replaced,
    short,
)
from verify.model_check.tasks import LEAVING, Jobs
from voicefleet.schemas.keys import GROUP

LATE = ("deadline_ms", "1")


class CheckedFleet:
    """One fleet on one server: what its state holds, and what a call makes of it."""

    def __init__(self, fleet: Fleet, server: Server) -> None:
        self.fleet = fleet
        self.outboxes = Outboxes()
        self.jobs = Jobs(fleet, self.outboxes)
        self.sessions = {session: i for i, session in enumerate(fleet.sessions)}
        self.keys = calls.all_keys(fleet.sessions)
        self.index = {key: i for i, key in enumerate(self.keys)}
        self.audio = {
            KEYS.audio(s): tuple(request for request in fleet.requests if request.session == s)
            for s in fleet.sessions
        }
        self._server = server
        self._seen: set[tuple[str, int, int]] = set()

    @property
    def executed(self) -> int:
        """How many calls were run for real."""
        return self._server.executed

    def begin(self) -> Data:
        """The data in which all requests are on the queue and no worker has read any."""
        adds = [
            ("XADD", QUEUE, a.entry, "session", a.session, "request", a.name, *LATE * a.is_late)
            for a in self.fleet.requests
        ]
        self._server.prepare(*adds, ("XGROUP", "CREATE", QUEUE, GROUP, "0", "MKSTREAM"))
        values = [ABSENT] * len(self.keys)
        values[self.index[QUEUE]] = self._server.number(QUEUE)
        return Data(tuple(values), (0,) * len(self.sessions))

    # Looking.

    def is_finished(self, state: State) -> str:
        """Why the fleet is not finished; empty when it is, and every key is as it should be."""
        if state.ghosts or any(w.tasks for w in state.workers):
            return "a worker is busy"
        queue = self.queue(state)
        if queue.entries or queue.pending:
            return f"left on the queue: {queue}"
        for number, key in zip(state.data.values, self.keys, strict=True):
            if key != QUEUE and not self._server.values[number].expires:
                return f"without a TTL: {key}"
        for session in self.fleet.sessions:
            key = KEYS.audio(session)
            if not is_complete(self.content(state, key), self.audio[key]):
                return f"not answered in session {session}"
            lease = dict(self.content(state, KEYS.lease(session)))
            if lease.get("active") == "1" or any(name.startswith("w:") for name in lease):
                return f"the lease of session {session} says {lease}"
            record = dict(self.content(state, KEYS.session(session)))
            if self.fleet.checks_record and record and record["state"] != "idle":
                return f"session {session} is {record['state']}"
        return ""

    def content_of(self, data: Data, key: str) -> Any:
        """What a key holds in these data."""
        return self._server.values[data.values[self.index[key]]].content

    def content(self, state: State, key: str) -> Any:
        """What a key holds."""
        return self.content_of(state.data, key)

    def queue(self, state: State) -> Queue:
        """The request stream."""
        return cast(Queue, self.content(state, QUEUE))

    def has_slot(self, worker: Worker) -> bool:
        """Whether another turn could start."""
        return sum(task.slot for task in worker.tasks) < self.fleet.slots

    def may_read(self, worker: Worker) -> bool:
        """Whether the worker may take another request."""
        return worker.status == "up" and self.has_slot(worker)

    def worked_on(self, worker: Worker) -> set[str]:
        """Entries of the worker's jobs, except those that it is leaving."""
        return {self.jobs.request(t).entry for t in worker.tasks if t.stage not in LEAVING}

    def stranded(self, state: State, worker: Worker) -> tuple[str, ...]:
        """Entries that the worker has on the pending list and no job for."""
        mine = {self.jobs.request(t).entry for t in worker.tasks if t.stage != "dropped"}
        held = self.queue(state).held_by(worker.name)
        return tuple(entry for entry in held if entry not in mine)

    def seems_to_speak(self, state: State, name: str, entry: str) -> bool:
        """Whether the owner is alive and renews the session's record each second."""
        return any(
            worker.name == name
            and not worker.suspected
            and any(
                t.stage == "speaking" and self.jobs.request(t).entry == entry for t in worker.tasks
            )
            for worker in state.workers
        )

    def ticket_held(self, data: Data, session: str) -> str:
        """The ticket with which a session's lease was taken."""
        return str(dict(self.content_of(data, KEYS.lease(session))).get("ticket", ""))

    # Doing.

    def lose(self, state: State, line: Line) -> State:
        """Let calls that were sent be executed at any later time, their replies lost."""
        left = state.left._replace(losses=state.left.losses - 1)
        return state._replace(left=left, ghosts=(*state.ghosts, line))

    def execute(self, state: State, call: Call, label: str) -> tuple[State, Any]:
        """Let the server execute a call.

        Raises:
            Violation: It breaks an invariant.
        """
        data, indexes = state.data, [self.index[key] for key in call.keys]
        session = self.sessions.get(call.session, -1)
        epoch = data.epochs[session] if call.session else 0
        before = tuple(data.values[i] for i in indexes)
        try:
            outcome = self._server.run(call, before, epoch)
        except RefusedError as error:
            raise Violation(label, f"the server refuses: {error}") from None
        changed = outcome.values != before or outcome.epoch in (NEW, RAISED) or outcome.rung
        if not changed:
            return state, outcome.reply
        if (
            call.kind == "acquire"
            and outcome.reply.epoch
            and outcome.epoch != NEW
            and self.ticket_held(state.data, call.session) != call.ticket
        ):
            raise Violation(label, "a new owner has an old epoch")
        values = list(data.values)
        for i, number in zip(indexes, outcome.values, strict=True):
            values[i] = number
        epochs, wake = data.epochs, data.wake
        if call.session and outcome.epoch == NEW:
            epochs = replaced(
                epochs, session, max(epochs_of(state, session, self.jobs)) + EPOCH_STEP
            )
        elif call.session and outcome.epoch == RAISED:
            epochs = replaced(epochs, session, epoch + 1)
        elif call.session and outcome.epoch == NONE:
            epochs = replaced(epochs, session, 0)
        if outcome.rung:
            seen = [w.reader.seen_wake for w in state.workers]
            wake = max(*seen, data.wake, state.replica.wake if state.replica else 0) + 1
        after = state._replace(data=Data(tuple(values), epochs, wake))
        try:
            after = self._check(state, after, call)
        except BrokenInvariant as broken:
            raise Violation(f"{label} -> {short(outcome.reply)}", str(broken)) from None
        return after, outcome.reply

    def _check(self, state: State, after: State, call: Call) -> State:
        for key, requests in self.audio.items():
            at = self.index[key]
            old, new = state.data.values[at], after.data.values[at]
            if old == new:
                continue
            entries = self.content(after, key)
            if (key, old, new) not in self._seen:
                check_growth(self.content(state, key), entries)
                check_stream(entries, requests, may_fail=self.fleet.faults.failures > 0)
                self._seen.add((key, old, new))
            epoch = state.data.epochs[self.sessions[call.session]]
            if call.kind in ("append", "finish") and call.epoch != epoch:
                raise BrokenInvariant(
                    f"published with epoch {call.epoch}, which is not the lease's"
                )
            if state.forgotten:
                check_memory(state.forgotten, key, entries)
                there = {entry for entry, _ in entries}
                kept = tuple(f for f in state.forgotten if f[0] != key or f[1] not in there)
                after = after._replace(forgotten=kept)
        self._check_queue(state, after)
        return after

    def _check_queue(self, state: State, after: State) -> None:
        """A request leaves the queue only when it is answered, or queued again under its name."""
        kept = self.queue(after).entries
        gone = set(self.queue(state).entries).difference(kept)
        for request in self.fleet.requests:
            if request.entry in gone:
                content = self.content(after, KEYS.audio(request.session))
                others = {(a.session, a.name) for a in self.fleet.requests if a.entry in kept}
                if not has_end(content, request) and (request.session, request.name) not in others:
                    raise BrokenInvariant(f"{request.entry} is off the queue and was not answered")
