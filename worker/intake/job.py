"""One request in this worker's hands, from its delivery until it is answered or another worker's.

A job waits for its session, takes the session's lease, has the turn spoken, and then deletes the
request's queue entry or hands it back. ``worker.intake.job_state`` has its states.
"""

import time
from collections.abc import Callable

import anyio
import structlog

from voicefleet.schemas.audio import Reason
from voicefleet.schemas.request import InvalidRequest, Request
from voicefleet.wire.link import ReplyError
from voicefleet.worker.context import WorkerContext
from voicefleet.worker.control.key_watch import RECONCILE_S
from voicefleet.worker.control.session_watch import ENDINGS, SessionWatch
from voicefleet.worker.control.text_stream import TextLog
from voicefleet.worker.intake.job_state import DONE, DONE_BY, TRANSITIONS, JobState
from voicefleet.worker.intake.turn_runner import TurnRunner
from voicefleet.worker.intake.waiting_place import WaitingPlace
from voicefleet.worker.models.slots import Slot
from voicefleet.worker.publish.outbox import PublishOutcome
from voicefleet.worker.store.lease_states import GRANTED, Claim, Standing
from voicefleet.worker.store.queues import Delivery
from voicefleet.worker.store.scripts.session import Acquired
from voicefleet.worker.store.sessions import Waiter
from voicefleet.worker.synthesis.turn import InvalidTransitionError

log = structlog.stdlib.get_logger(__name__)


class Job:
    """One delivery. ``run`` sees it through; ``hand_over`` and ``drop`` end it early.

    Args:
        context: The worker's parts.
        delivery: Its entry is pending in this worker's name.
        slot: ``None`` where the worker had none: the job takes one before it speaks.
        begin: Begins a job for another delivery, in a slot that this job gives away.
    """

    def __init__(
        self,
        context: WorkerContext,
        delivery: Delivery,
        slot: Slot | None,
        begin: Callable[[Delivery, Slot], None],
    ) -> None:
        self.delivery = delivery
        self.session: str | None = None
        self._state = JobState.WAITING
        self._end_early: Callable[[], None] = _nothing
        self._name = delivery.entry
        self._context = context
        self._slot = slot
        self._begin = begin
        self._received_at = time.monotonic()
        self._interrupts = False
        self._text_key: str | None = None
        self._text = TextLog()
        self._rejection: str | None = None

    @property
    def state(self) -> JobState:
        """Where the request's life in this worker stands."""
        return self._state

    @property
    def is_waiting(self) -> bool:
        """Whether it does not hold its session's lease, and goes on trying to get it."""
        return self._state is JobState.WAITING

    @property
    def is_done(self) -> bool:
        """Whether only the request's queue entry is left to deal with."""
        return self._state in DONE

    @property
    def kept_keys(self) -> list[str]:
        """Keys that must not expire while the job lasts."""
        if self.session is None:
            return []
        text = [] if self._text_key is None else [self._text_key]
        return [*self._context.sessions.keys(self.session), *text]

    def drop(self) -> None:
        """Stop waiting: another worker has the request. Has no effect unless ``WAITING``."""
        if self.is_waiting:
            self._go(JobState.DROPPED)
            self._end_early()

    def hand_over(self) -> None:
        """Leave the request to another worker, at once and in mid-turn if need be."""
        if self._state in (JobState.WAITING, JobState.SPEAKING):
            self._go(JobState.HANDING_OVER)
            self._end_early()

    def _go(self, state: JobState) -> None:
        if state not in TRANSITIONS[self._state]:
            raise InvalidTransitionError(f"{self._state.value} does not lead to {state.value}")
        self._state = state

    async def run(self) -> None:
        """See the delivery through. A failure concerns this request alone: nothing is raised."""
        try:
            done = await self._run()
        except ReplyError as error:
            # A value of another type stands where one of the session's keys belongs.
            log.warning("session_unusable", error=str(error), entry=self.delivery.entry)
            if self.session is not None:
                await self._abandon(self.session)
            await self._add_dead_letter(self._name, "failed", f"redis: {error}")
            done = JobState.UNANSWERABLE
        except Exception:
            log.exception("job_failed", entry=self.delivery.entry)
            done = JobState.HANDED_BACK
        finally:
            self._release_slot()
        if self.state is not JobState.DROPPED:
            self._go(done)
        if self.state in (JobState.ANSWERED, JobState.UNANSWERABLE):
            if self._text_key is not None:  # a turn that was answered elsewhere left it as it was
                await self._context.sessions.touch([self._text_key])
            answered_in = self.session if self.state is JobState.ANSWERED else None
            if not await self._context.queues.settle(self.delivery, answered_in, self._name):
                self._go(JobState.HANDED_BACK)
        if self.state is JobState.HANDED_BACK:
            await self._context.queues.hand_back(self.delivery.model, [self.delivery.entry])

    async def _run(self) -> JobState:
        """Returns one of ``DONE``."""
        request = await self._read()
        if request is None:
            return JobState.UNANSWERABLE
        self.session, self._name = request.session, request.name
        if request.stream:
            self._text_key = self._context.keys.text(request.session, request.name)
        bound = {"session": request.session, "request": request.name}
        if request.traceparent is not None:
            bound["trace_id"] = request.traceparent.split("-")[1]
        with structlog.contextvars.bound_contextvars(**bound):
            view = SessionWatch(self.delivery, request.session, request.name)
            async with view.open(self._context.watch, self._context.keys):
                return await self._see_through(request, view)

    async def _read(self) -> Request | None:
        """Read the request. An invalid one that names its session is answered there, in order."""
        try:
            return self._context.read(self.delivery)
        except InvalidRequest as error:
            self._rejection = str(error)
            if error.session is not None:
                stream = self.delivery.fields.get(b"stream") == b"1"
                return Request(session=error.session, request=error.request, stream=stream)
            log.info("request_rejected", entry=self.delivery.entry, error=self._rejection)
            await self._add_dead_letter(error.request, "rejected", self._rejection)
            return None

    async def _see_through(self, request: Request, view: SessionWatch) -> JobState:
        """Take the lease and speak; start over when the server forgets the turn meanwhile."""
        claim = self.delivery.claim
        last: Acquired | None = None
        last_delivered = -1
        while self.is_waiting:
            acquired: Acquired | JobState = JobState.HANDED_BACK
            with anyio.CancelScope() as scope:
                self._end_early = scope.cancel
                acquired = await self._acquire(request, view, claim, last)
            if isinstance(acquired, JobState):
                return acquired
            view.epoch = acquired.epoch
            await view.seen()
            if self.state is JobState.DROPPED:
                break
            runner = TurnRunner(
                *(self._context, view, self.delivery, request, acquired, self._text),
                last_delivered,
            )
            with structlog.contextvars.bound_contextvars(turn=acquired.turn):
                outcome = await self._speak(request, view, acquired, runner)
                if outcome is not PublishOutcome.FORGOTTEN:
                    if outcome is PublishOutcome.ENDED and runner.reason == "interrupted":
                        await self._leave_slot_to(view.interrupter)
                    self._release_slot()
                    return await self._conclude(request, runner, acquired, outcome)
                log.warning("turn_forgotten", frames=runner.outbox.frames)
            claim, last = Claim.REGAIN, acquired
            last_delivered = max(last_delivered, runner.outbox.frames)
            if self.state is JobState.SPEAKING:
                self._go(JobState.WAITING)
        return JobState.HANDED_BACK

    async def _speak(
        self, request: Request, view: SessionWatch, acquired: Acquired, runner: TurnRunner
    ) -> PublishOutcome:
        self._end_early = runner.hand_over
        if self.state is JobState.HANDING_OVER:  # while the lease was being granted
            runner.hand_over()
        else:
            self._go(JobState.SPEAKING)
        return await runner.run(self._unspoken(request, view, begun=acquired.last >= 0))

    # Waiting for the session.

    async def _acquire(
        self, request: Request, view: SessionWatch, claim: Claim, last: Acquired | None
    ) -> Acquired | JobState:
        """Take the lease when it is this request's turn, and a slot to speak it in.

        Returns what the lease granted, or one of ``DONE``. ``last`` is what this worker held
        before, with ``REGAIN``.
        """
        place: WaitingPlace | None = None
        self._interrupts = request.interrupt
        if self._slot is None:  # whether it needs one depends on what the session says
            await view.seen()
        while True:
            read = view.lease_read  # taken first: a change while we ask must not be missed
            if place is None or self._is_next(view) or view.is_spoken:
                if self._unspoken(request, view) is None and not self._take_slot():
                    return JobState.HANDED_BACK
                if not await self._is_ours():
                    return JobState.DROPPED
                acquired = await self._context.sessions.acquire(
                    self.delivery, request.session, request.name, claim=claim, last=last
                )
                if acquired.standing in GRANTED:
                    return acquired
                if acquired.standing in DONE_BY:
                    return DONE_BY[acquired.standing]
                # The turn that an interrupting one waits for ends at once: it keeps its slot.
                if not self._interrupts:
                    self._release_slot()
            if place is not None and any(self._is_me(waiter) for waiter in view.lease.waiters):
                place.was_seen = True
                await place.clear_the_way(view.lease)
            elif place is None or place.is_lost():
                is_first = place is None
                done = await self._enqueue(request)
                if done is not None:
                    return done
                context = self._context
                place = WaitingPlace(
                    context.queues, context.sessions, self.delivery, request.session
                )
                if is_first:
                    await view.seen()
                else:
                    # The server forgot who waits: all of them come back before one is next.
                    await anyio.sleep(RECONCILE_S)
            await read.wait()

    async def _enqueue(self, request: Request) -> JobState | None:
        """Get a place in the session's line; returns one of ``DONE`` where there is none to get."""
        config = self._context.config
        enqueued = await self._context.sessions.enqueue(
            self.delivery,
            request,
            most=config.max_waiting_turns,
            conversation_s=config.conversation_s,
        )
        if enqueued.standing in DONE_BY:
            return DONE_BY[enqueued.standing]
        self._interrupts = enqueued.interrupts
        if not self._interrupts:
            self._release_slot()
        return None

    async def _is_ours(self) -> bool:
        """Whether the queue entry is still in our name; asked only after this process stood still.

        Others may have taken and answered it meanwhile, and a failover may have forgotten the
        answer: then nothing but the entry's owner says so.
        """
        now = time.monotonic()
        if self._context.loop.stood_still_since(self._received_at):
            pending = await self._context.queues.pending(self.delivery.model)
            if pending is None or self.delivery.entry not in pending:
                log.info("request_taken_by_another", entry=self.delivery.entry)
                return False
            self._received_at = now
        return True

    def _is_me(self, waiter: Waiter) -> bool:
        return (waiter.entry, waiter.model) == (self.delivery.entry, self.delivery.model)

    def _is_next(self, view: SessionWatch) -> bool:
        """Whether nobody speaks in the session, and no earlier request waits there."""
        waiters = view.lease.waiters
        return not view.lease.active and bool(waiters) and self._is_me(waiters[0])

    def _unspoken(
        self, request: Request, view: SessionWatch, *, begun: bool = False
    ) -> tuple[Reason, str] | None:
        """The reason and error with which to end the request unspoken; ``None``: speak it."""
        if self._rejection is not None:
            return "rejected", self._rejection
        ending = ENDINGS.get(view.directive())
        if ending is not None:
            return ending, ""
        late = request.deadline_ms is not None and (
            self._context.clock.now_ms() >= request.deadline_ms
        )
        return ("expired", "") if late and not begun else None

    def _take_slot(self) -> bool:
        if self._slot is None:
            self._slot = self._context.slots.try_take(self.delivery.model)
        return self._slot is not None

    def _release_slot(self) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.release()

    async def _leave_slot_to(self, heir: Waiter | None) -> None:
        """Begin a job for the turn that interrupted this one, in this slot, if it waits for one."""
        slot, context = self._slot, self._context
        if heir is None or slot is None or heir.model not in context.backlogs:
            return
        if self.state is JobState.HANDING_OVER:
            return
        if heir.model != slot.model:
            self._release_slot()
            slot = context.slots.try_take(heir.model)
        self._slot = slot
        if slot is not None:
            delivery = await context.backlogs[heir.model].adopt(heir.entry)
            if delivery is not None:
                self._slot = None
                self._begin(delivery, slot)

    # After the turn.

    async def _conclude(
        self, request: Request, runner: TurnRunner, acquired: Acquired, outcome: PublishOutcome
    ) -> JobState:
        """Do what the turn's outcome asks for; returns one of ``DONE``."""
        sessions, outbox = self._context.sessions, runner.outbox
        match outcome:
            case PublishOutcome.ENDED:
                self._report(runner, acquired)
                if runner.reason in ("rejected", "failed"):
                    await self._add_dead_letter(request.name, runner.reason, runner.error)
                return JobState.ANSWERED
            case PublishOutcome.FENCED:
                # We ended it in a batch whose reply was lost, or another worker has it by now.
                log.info("turn_fenced", frames=outbox.frames)
                # Others took us for dead, perhaps killed by this request: say that we live.
                claim = Claim.INQUIRE_ALIVE if runner.attempts else Claim.INQUIRE
                now = await sessions.acquire(
                    self.delivery, request.session, request.name, claim=claim
                )
                return DONE_BY.get(now.standing, JobState.HANDED_BACK)
            case PublishOutcome.UNWRITABLE:
                await self._abandon(request.session)
                await self._add_dead_letter(
                    request.name, "failed", "the audio key takes no entries"
                )
                return JobState.UNANSWERABLE
            case _:
                log.info("turn_handed_over", frames=outbox.frames, outcome=outcome.value)
                blameless = outcome is not PublishOutcome.ENGINE_FAILED and runner.attempts > 0
                await sessions.release(request.session, acquired.epoch, blameless=blameless)
                return JobState.HANDED_BACK

    def _report(self, runner: TurnRunner, acquired: Acquired) -> None:
        """Log a turn that has ended, and count it in the worker's figures."""
        outbox, turn = runner.outbox, runner.turn
        turn.finished()
        self._context.stats.add(outbox.first_audio_ms, turn.engine_s, turn.audio_s)
        figures = {
            "error": runner.error or None,
            "first_audio_ms": outbox.first_audio_ms,
            "rtf": round(turn.engine_s / turn.audio_s, 4) if turn.audio_s else None,
            "taken_over": acquired.standing is not Standing.NEW or None,
        }
        present = {name: figure for name, figure in figures.items() if figure is not None}
        log.info("turn_ended", reason=runner.reason, frames=outbox.frames, **present)

    async def _abandon(self, session: str) -> None:
        """Give up the turn that cannot be answered, so that later requests do not wait for it."""
        context, delivery = self._context, self.delivery
        await context.sessions.abandon(session, delivery.entry, delivery.model, context.name)

    async def _add_dead_letter(self, request: str, reason: Reason, error: str) -> None:
        await self._context.queues.add_dead_letter(
            self.delivery, self.session, request, reason, error
        )


def _nothing() -> None:
    """Nothing is under way that could be ended early."""
