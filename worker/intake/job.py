"""One request in this worker's hands: from its delivery until it is answered, or another's.

Waits for its session, takes the lease, has the turn performed, settles.
"""

import time
from collections.abc import Callable
from enum import Enum

import anyio
import structlog

from voicefleet.schemas.audio import Reason
from voicefleet.schemas.request import InvalidRequest, Request
from voicefleet.wire.link import ReplyError
from voicefleet.worker.context import WorkerContext
from voicefleet.worker.control.key_watch import RECONCILE_S
from voicefleet.worker.control.session_watch import SessionWatch
from voicefleet.worker.control.text_stream import TextLog
from voicefleet.worker.intake.turn_runner import ENDINGS, TurnRunner
from voicefleet.worker.intake.waiting_place import PlaceInLine
from voicefleet.worker.models.slots import Slot
from voicefleet.worker.publish.outbox import PublishOutcome
from voicefleet.worker.store.lease_states import Claim, Standing
from voicefleet.worker.store.queues import Delivery
from voicefleet.worker.store.scripts.session import Acquired
from voicefleet.worker.store.sessions import Waiter

log = structlog.stdlib.get_logger(__name__)


class _Left(Enum):
    """What is left to do with the request when this worker is through with it."""

    SETTLE = "it is answered: off the queue"
    REMOVE = "it cannot be answered: off the queue"
    DROP = "it is another worker's"
    HAND_BACK = "any worker may take it"


class Job:
    """One delivery. ``run`` sees it through; ``hand_over`` gives it to another worker.

    Args:
        context: The worker's parts.
        delivery: In this worker's name.
        slot: Without one it can be answered, but not spoken before there is one.
        begin: Begins another delivery, in a slot that this one leaves to it.
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
        self._name = delivery.entry
        self._context = context
        self._slot = slot
        self._begin = begin
        self._received_at = time.monotonic()
        self._interrupts = False
        self._text_key: str | None = None
        self._text = TextLog()
        self._rejection: str | None = None
        self._given_up = False
        self._is_others = False
        self.is_leaving = False
        self._waiting = anyio.CancelScope()
        self._runner: TurnRunner | None = None

    @property
    def is_speaking(self) -> bool:
        """Whether it holds its session's lease."""
        return self._runner is not None

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for its session."""
        return self._runner is None and not self.is_leaving

    @property
    def kept_keys(self) -> list[str]:
        """Keys that must not expire meanwhile."""
        if self.session is None:
            return []
        text = [] if self._text_key is None else [self._text_key]
        return [*self._context.sessions.keys(self.session), *text]

    def dismiss(self) -> None:
        """Wait no more: the request is in another worker's hands."""
        if self._runner is None:
            self._is_others = True
            self._waiting.cancel()

    def hand_over(self) -> None:
        """Give the request to whoever has a slot, in mid-turn if need be. Takes effect at once."""
        self._given_up = True
        if self._runner is not None:
            self._runner.hand_over()
        else:
            self._waiting.cancel()

    async def run(self) -> None:
        """See the delivery through. A request's failure is its own: nothing is raised for it."""
        try:
            left = await self._run()
        except ReplyError as error:
            # Something of another type stands where one of our keys belongs.
            log.warning("session_unusable", error=str(error), entry=self.delivery.entry)
            if self.session is not None:
                await self._abandon(self.session)
            await self._bury(self._name, "failed", f"redis: {error}")
            left = _Left.REMOVE
        except Exception:
            log.exception("job_failed", entry=self.delivery.entry)
            left = _Left.HAND_BACK
        finally:
            self.is_leaving = True
            self._release_slot()
        if left in (_Left.SETTLE, _Left.REMOVE):
            if self._text_key is not None:  # of a turn that was known before, say
                await self._context.sessions.touch([self._text_key])
            answered_in = self.session if left is _Left.SETTLE else None
            if not await self._context.queues.settle(self.delivery, answered_in, self._name):
                left = _Left.HAND_BACK
        if left is _Left.HAND_BACK:
            await self._context.queues.hand_back(self.delivery.model, [self.delivery.entry])

    async def _run(self) -> _Left:
        request = await self._read()
        if request is None:
            return _Left.REMOVE
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
        """The request; one that names its session at least is answered there, in its order."""
        try:
            return self._context.read(self.delivery)
        except InvalidRequest as error:
            self._rejection = str(error)
            if error.session is not None:
                stream = self.delivery.fields.get(b"stream") == b"1"
                return Request(session=error.session, request=error.request, stream=stream)
            log.info("rejected", entry=self.delivery.entry, error=self._rejection)
            await self._bury(error.request, "rejected", self._rejection)
            return None

    async def _see_through(self, request: Request, view: SessionWatch) -> _Left:
        claim = self.delivery.claim
        last: Acquired | None = None
        heard = -1
        while not self._given_up:
            acquired: Acquired | _Left = _Left.HAND_BACK
            with anyio.CancelScope() as self._waiting:
                acquired = await self._acquire(request, view, claim, last)
            if self._is_others:
                return _Left.DROP
            if isinstance(acquired, _Left):
                return acquired
            view.epoch = acquired.epoch
            await view.seen()
            runner = TurnRunner(
                self._context, view, self.delivery, request, acquired, self._text, heard
            )
            self._runner = runner
            if self._given_up:
                runner.hand_over()
            with structlog.contextvars.bound_contextvars(turn=acquired.turn):
                try:
                    unspoken = self._unspoken(request, view, begun=acquired.last >= 0)
                    outcome = await runner.run(unspoken)
                finally:
                    self._runner = None
                if outcome is PublishOutcome.FORGOTTEN:
                    log.warning("server_forgot", last=runner.outbox.frames)
                    claim, last = Claim.REGAIN, acquired
                    heard = max(heard, runner.outbox.frames)
                    continue
                if outcome is PublishOutcome.ENDED and runner.reason == "interrupted":
                    await self._leave_slot_to(view.interrupter)
                self._release_slot()
                return await self._conclude(request, view, runner, acquired, outcome)
        return _Left.HAND_BACK

    # Waiting for the session.

    async def _acquire(
        self, request: Request, view: SessionWatch, claim: Claim, last: Acquired | None
    ) -> Acquired | _Left:
        """Take the lease when it is this request's turn, and a slot to speak it in."""
        place: PlaceInLine | None = None
        self._interrupts = request.interrupt
        if self._slot is None:  # what it is to be answered with has to be known
            await view.seen()
        while True:
            read = view.lease_read  # what changes while we ask is not to be missed
            if place is None or self._is_next(view) or view.is_spoken:
                if self._unspoken(request, view) is None and not self._take_slot():
                    return _Left.HAND_BACK
                if not await self._is_ours():
                    return _Left.DROP
                acquired = await self._context.sessions.acquire(
                    self.delivery, request.session, request.name, claim=claim, last=last
                )
                match acquired.standing:
                    case Standing.NEW | Standing.TAKEN_OVER | Standing.CRASH_SUSPECTED:
                        return acquired
                    case Standing.ALREADY_ANSWERED | Standing.SESSION_FULL:
                        return _Left.SETTLE
                    case Standing.HELD_ELSEWHERE:
                        return _Left.DROP
                    case Standing.WAITING:
                        # What an interrupting turn waits for ends at once, and leaves it a slot.
                        if not self._interrupts:
                            self._release_slot()
            if place is None:
                place = self._place_in_line(request.session)
                left = await self._enqueue(request)
                if left is not None:
                    return left
                await view.seen()
            elif not any(self._is_me(waiter) for waiter in view.lease.waiters):
                if place.is_lost():
                    # The server forgot who waits. Let all of them come back before one is next.
                    left = await self._enqueue(request)
                    if left is not None:
                        return left
                    place = self._place_in_line(request.session)
                    await anyio.sleep(RECONCILE_S)
            else:
                place.was_seen = True
                await place.clear_the_way(view.lease)
            await read.wait()

    def _place_in_line(self, session: str) -> PlaceInLine:
        context = self._context
        return PlaceInLine(context.queues, context.sessions, self.delivery, session)

    async def _enqueue(self, request: Request) -> _Left | None:
        """Wait for the session; returns what is left to do where there is nothing to wait for."""
        config = self._context.config
        enqueued = await self._context.sessions.enqueue(
            self.delivery,
            request,
            most=config.max_waiting_turns,
            conversation_s=config.conversation_s,
        )
        match enqueued.standing:
            case Standing.ALREADY_ANSWERED | Standing.SESSION_FULL:
                return _Left.SETTLE
            case Standing.HELD_ELSEWHERE:
                return _Left.DROP
            case _:
                self._interrupts = enqueued.interrupts
                if not self._interrupts:
                    self._release_slot()
                return None

    async def _is_ours(self) -> bool:
        """Whether the request is still in our hands, if this process stood still meanwhile.

        Others took it then, and may have answered it: where the server has forgotten that since,
        nothing else says so.
        """
        now = time.monotonic()
        if self._context.loop.stood_still_since(self._received_at):
            pending = await self._context.queues.pending(self.delivery.model)
            if pending is None or self.delivery.entry not in pending:
                log.info("not_ours_any_more", entry=self.delivery.entry)
                return False
            self._received_at = now
        return True

    def _is_me(self, waiter: Waiter) -> bool:
        return (waiter.entry, waiter.model) == (self.delivery.entry, self.delivery.model)

    def _is_next(self, view: SessionWatch) -> bool:
        """Whether nobody speaks the session, and no other waits that was added before."""
        waiters = view.lease.waiters
        return not view.lease.active and bool(waiters) and self._is_me(waiters[0])

    def _unspoken(
        self, request: Request, view: SessionWatch, *, begun: bool = False
    ) -> tuple[Reason, str] | None:
        """Why the request is to be answered without a word, and the error that goes with it."""
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
        """Speak what interrupted this turn in its slot, if it waits for one."""
        slot, context = self._slot, self._context
        if heir is None or slot is None or heir.model not in context.backlogs or self._given_up:
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
        self,
        request: Request,
        view: SessionWatch,
        runner: TurnRunner,
        acquired: Acquired,
        outcome: PublishOutcome,
    ) -> _Left:
        sessions, outbox, turn = self._context.sessions, runner.outbox, runner.turn
        reason, error = runner.reason, runner.error
        match outcome:
            case PublishOutcome.ENDED:
                turn.finished()
                self._context.stats.add(outbox.first_audio_ms, turn.engine_s, turn.audio_s)
                figures = {
                    "error": error or None,
                    "first_audio_ms": outbox.first_audio_ms,
                    "rtf": round(turn.engine_s / turn.audio_s, 4) if turn.audio_s else None,
                    "taken_over": acquired.standing is not Standing.NEW or None,
                }
                said = {name: figure for name, figure in figures.items() if figure is not None}
                log.info("turn", reason=reason, frames=outbox.frames, **said)
                if reason in ("rejected", "failed"):
                    await self._bury(request.name, reason, error)
                return _Left.SETTLE
            case PublishOutcome.FENCED:
                # Ended by us in a batch whose reply was lost, or another worker's by now.
                log.info("fenced", frames=outbox.frames)
                # Taken for dead, we were not killed by this request: nobody shall think so.
                asked = Claim.INQUIRE_ALIVE if runner.attempts else Claim.INQUIRE
                now = await sessions.acquire(
                    self.delivery, request.session, request.name, claim=asked
                )
                left = {
                    Standing.ALREADY_ANSWERED: _Left.SETTLE,
                    Standing.HELD_ELSEWHERE: _Left.DROP,
                }
                return left.get(now.standing, _Left.HAND_BACK)
            case PublishOutcome.UNWRITABLE:
                await self._abandon(request.session)
                await self._bury(request.name, "failed", "the audio key takes no entries")
                return _Left.REMOVE
            case (
                PublishOutcome.HANDED_OVER | PublishOutcome.ENGINE_FAILED | PublishOutcome.FORGOTTEN
            ):
                log.info("handed_over", frames=outbox.frames, outcome=outcome.value)
                blameless = outcome is not PublishOutcome.ENGINE_FAILED and runner.attempts > 0
                await sessions.release(request.session, acquired.epoch, blameless=blameless)
                return _Left.HAND_BACK

    async def _abandon(self, session: str) -> None:
        """No answer can be given there: let others not wait for it."""
        context, delivery = self._context, self.delivery
        await context.sessions.abandon(session, delivery.entry, delivery.model, context.name)

    async def _bury(self, request: str, reason: Reason, error: str) -> None:
        await self._context.queues.add_dead_letter(
            self.delivery, self.session, request, reason, error
        )
