"""What may happen to a worker's jobs: waiting, speaking, and their reconciliation."""

from collections.abc import Iterator
from typing import Any

from verify.model_check import calls
from verify.model_check.calls import KEYS
from verify.model_check.checked_fleet import CheckedFleet
from verify.model_check.fleets import Request
from verify.model_check.server import entry_order
from verify.model_check.state import Next, State, Worker, put, put_task, short
from verify.model_check.tasks import CANCELLABLE, Task
from voicefleet.worker.publish.outbox import PublishOutcome


class Turns:
    """The steps of jobs, and of ``worker.intake.pending_reconciler``."""

    def __init__(self, checked: CheckedFleet) -> None:
        self._checked = checked
        self._jobs = checked.jobs

    def working(self, state: State, at: int, worker: Worker, task: Task) -> Iterator[Next]:
        """The steps of one of a worker's jobs."""
        request, name = self._jobs.request(task), worker.name
        if any(
            t.request == task.request and t.stage == "dropped" and t != task for t in worker.tasks
        ):
            return  # earlier calls on the same connection are executed first
        if task.line:
            call, rest = task.line[0], task.line[1:]
            label = f"{name}: {call}"
            after, reply = self._checked.execute(state, call, label)
            label = f"{label} -> {short(reply)}"
            if task.stage == "speaking":
                now = task._replace(line=rest, replies=(*task.replies, reply))
                if not rest:
                    now = self._confirm(name, now)
                yield label, False, put_task(after, at, task, now)
            elif rest:
                yield label, False, put_task(after, at, task, task._replace(line=rest))
            else:
                epoch = after.data.epochs[self._checked.sessions[request.session]]
                done = self._jobs.answered(name, task, reply, epoch)
                yield label, False, put_task(after, at, task, done)
            if state.left.losses:
                after = self._checked.lose(state, task.line)
                now = task._replace(line=task.line[-1:])
                if task.stage == "speaking":
                    outbox = self._checked.outboxes.unanswered(task.outbox)
                    now = task._replace(line=(), replies=(), outbox=outbox)
                yield f"{name}: lose the connection of {call}", True, put_task(after, at, task, now)
        if task.stage == "waiting":
            yield from self._waiting(state, at, worker, task)
        if task.stage == "speaking":
            yield from self._speaking(state, at, worker, task, request)

    def _waiting(self, state: State, at: int, worker: Worker, task: Task) -> Iterator[Next]:
        request, name = self._jobs.request(task), worker.name
        lease = dict(self._checked.content(state, KEYS.lease(request.session)))
        waiters = sorted(
            (entry_order(field.split(":")[1]), field.split(":")[1])
            for field in lease
            if field.startswith("w:")
        )
        entries = self._checked.queue(state).entries
        listed = [entry for _, entry in waiters]
        if lease.get("active") == "1" and lease["entry"] == request.entry:
            yield self._try(state, at, worker, task)
        elif request.entry not in listed:
            again = self._jobs.enqueue(task)
            yield f"{name}: {request.entry} was forgotten", False, put_task(state, at, task, again)
        elif lease.get("active") == "1":
            entry, owner = lease["entry"], lease.get("owner", "")
            if entry not in entries and not self._checked.seems_to_speak(state, owner, entry):
                call = calls.abandon(request.session, entry, owner)
                free = task._replace(stage="free", line=(call,))
                yield (
                    f"{name}: {request.entry} sees a lost turn",
                    False,
                    put_task(state, at, task, free),
                )
        elif listed[0] == request.entry:
            yield self._try(state, at, worker, task)
        elif listed[0] not in entries:
            call = calls.abandon(request.session, listed[0], "")
            free = task._replace(stage="free", line=(call,))
            yield (
                f"{name}: {request.entry} sees a lost place",
                False,
                put_task(state, at, task, free),
            )

    def _try(self, state: State, at: int, worker: Worker, task: Task) -> Next:
        request, name = self._jobs.request(task), worker.name
        if request.is_unspoken or self._checked.has_slot(worker):
            now = self._jobs.acquire(name, task._replace(slot=not request.is_unspoken))
            return (
                f"{name}: {request.entry} is next, or spoken",
                False,
                put_task(state, at, task, now),
            )
        now = self._jobs.hand_back(name, task)
        label = f"{name}: {request.entry} is next but there is no slot"
        return label, False, put_task(state, at, task, now)

    def _speaking(
        self, state: State, at: int, worker: Worker, task: Task, request: Request
    ) -> Iterator[Next]:
        name, outboxes = worker.name, self._checked.outboxes
        if not task.line:
            for label, sent in self._sendings(task, request):
                line = tuple(call._replace(epoch=task.epoch) for call in sent.calls)
                now = task._replace(outbox=sent.outbox, line=line)
                yield f"{name}: {request.entry} {label}", False, put_task(state, at, task, now)
        if state.data.epochs[self._checked.sessions[request.session]] > task.epoch:
            yield self._leave(state, at, worker, task, PublishOutcome.FENCED)
        if worker.status == "draining":
            yield self._leave(state, at, worker, task, PublishOutcome.HANDED_OVER)
        if state.left.failures and not outboxes.is_ending(task.outbox):
            left = state.left._replace(failures=state.left.failures - 1)
            if task.attempts < self._checked.fleet.max_deliveries:
                label, _, after = self._leave(state, at, worker, task, PublishOutcome.ENGINE_FAILED)
                yield label, True, after._replace(left=left)
            elif not task.line:
                sent = outboxes.send(task.outbox, 0, ("failed", "engine"))
                line = tuple(call._replace(epoch=task.epoch) for call in sent.calls)
                now = task._replace(outbox=sent.outbox, line=line)
                after = put_task(state, at, task, now)._replace(left=left)
                yield f"{name}: {request.entry} fails for good", True, after

    def _sendings(self, task: Task, request: Request) -> Iterator[tuple[str, Any]]:
        outboxes, outbox = self._checked.outboxes, task.outbox
        if outboxes.is_ending(outbox):
            if outboxes.wants(outbox):
                yield "sends", outboxes.send(outbox, 0, None)
            return
        remaining = request.frames + 1 - max(outboxes.next_frame(outbox), 1)
        yield f"makes {remaining} and ends", outboxes.send(outbox, remaining, ("completed", ""))
        if self._checked.fleet.splits:
            first = 0 if outboxes.wants(outbox) else 1
            for frames in range(first, remaining + 1):
                yield f"makes {frames}", outboxes.send(outbox, frames, None)

    def _confirm(self, name: str, task: Task) -> Task:
        outbox = self._checked.outboxes.confirm(task.outbox, task.replies)
        task = task._replace(outbox=outbox, replies=())
        outcome = self._checked.outboxes.outcome(outbox)
        return task if outcome is None else self._jobs.conclude(name, task, outcome)

    def _leave(
        self, state: State, at: int, worker: Worker, task: Task, outcome: PublishOutcome
    ) -> Next:
        """Give up a turn while its last batch may be on its way, on another connection."""
        now = self._jobs.conclude(worker.name, task, outcome)
        ghosts = (*state.ghosts, task.line) if task.line else state.ghosts
        label = f"{worker.name}: {self._jobs.request(task).entry} {outcome.name.lower()}"
        return label, False, put_task(state._replace(ghosts=ghosts), at, task, now)

    def reconciling(self, state: State, at: int, worker: Worker) -> Iterator[Next]:
        """``worker.intake.pending_reconciler``: acts on mismatches that it found twice in a row."""
        name = worker.name
        if not self._checked.fleet.reconciles or worker.reader.stage in (
            "handing_back",
            "checking",
        ):
            return
        queue = self._checked.queue(state)
        held = set(queue.held_by(name))
        mine = {self._jobs.request(t).entry for t in worker.tasks if t.stage != "dropped"}
        stray = held.difference(mine, worker.page)
        waiting = {
            self._jobs.request(task).entry for task in worker.tasks if task.stage in CANCELLABLE
        }
        foreign = waiting - held
        mismatches = tuple(sorted(stray | foreign))
        if mismatches == worker.mismatches:
            lasting = tuple(sorted(stray))
            dismissed = [
                task
                for task in worker.tasks
                if task.stage in CANCELLABLE
                and self._jobs.request(task).entry in foreign.intersection(queue.entries)
            ]
            if not lasting and not dismissed:
                return
            tasks = tuple(
                task._replace(stage="dropped") if task in dismissed else task
                for task in worker.tasks
                if task.line or task not in dismissed
            )
            label = f"{name}: reconciles {' '.join(mismatches)}"
            after = put(state, at, tasks=tasks, mismatches=())
            if lasting:
                after, _ = self._checked.execute(after, calls.hand_back(name, *lasting), label)
            yield label, False, after
        else:
            yield (
                f"{name}: finds mismatches {mismatches}",
                False,
                put(state, at, mismatches=mismatches),
            )
