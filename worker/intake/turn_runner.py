"""Run one turn while this worker holds its session's lease: speak, pause, stop, end it.

The frames go into the turn's outbox. When the outbox has its outcome, everything here is cancelled.
"""

import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import anyio
import structlog

from voicefleet.schemas.audio import CHANNELS, FORMAT, FRAME_MS, Reason
from voicefleet.schemas.request import Request, TextPiece
from voicefleet.worker.context import WorkerContext
from voicefleet.worker.control.session_watch import ENDINGS, Directive, SessionWatch
from voicefleet.worker.control.text_stream import TextLog, stream_text
from voicefleet.worker.engines.protocol import CannotSpeakError
from voicefleet.worker.models.pool import LoadedModel
from voicefleet.worker.publish.outbox import Opening, Outbox, PublishOutcome, Retention
from voicefleet.worker.store.lease_states import Standing
from voicefleet.worker.store.queues import Delivery
from voicefleet.worker.store.scripts.session import Acquired
from voicefleet.worker.synthesis.prepared_turn import prepare
from voicefleet.worker.synthesis.turn import Trail, Turn
from voicefleet.worker.text.feed import TextFeed

log = structlog.stdlib.get_logger(__name__)

CRASH_SUSPECTED_WAIT_S = (0.5, 2.0)
"""The range of the random wait before another attempt at a turn that may have killed its owner.

All turns of a worker that died reach their next owner together. If one of them kills again, those
that begin with it are suspected too, and are given up after ``max_deliveries`` such deaths. Waits
of different lengths keep the same turns from beginning together each time.
"""


class TurnRunner:
    """Runs one turn whose lease was granted.

    ``run`` returns its outcome; ``hand_over`` ends it early. Afterwards ``reason`` and ``error``
    are those of its end entry, ``turn`` and ``outbox`` have its figures, and ``attempts`` is how
    many attempts at it this worker has counted in the lease: 0 or 1.

    Args:
        context: The worker's parts.
        view: What the session says; ``changed`` belongs to the runner while it runs.
        delivery: The request's queue entry.
        request: The same, decoded.
        acquired: The lease.
        text: What was read of the turn's text stream so far.
        last_delivered: The last frame published before the server forgot the turn; -1: it did not.
    """

    def __init__(
        self,
        context: WorkerContext,
        view: SessionWatch,
        delivery: Delivery,
        request: Request,
        acquired: Acquired,
        text: TextLog,
        last_delivered: int = -1,
    ) -> None:
        self._context = context
        self._view = view
        self._delivery = delivery
        self._request = request
        self._acquired = acquired
        self._text_log = text
        self.reason: Reason = "completed"
        self.error = ""
        config = context.config
        text_key = context.keys.text(request.session, request.name) if request.stream else None
        self.outbox = Outbox(
            Opening(
                session=request.session,
                keys=context.sessions.keys(request.session),
                text_key=text_key,
                request=request.name,
                epoch=acquired.epoch,
                turn=acquired.turn,
                last=acquired.last,
                added_ms=delivery.added_ms,
                last_delivered=last_delivered,
            ),
            config.lead_ms if request.lead_ms is None else request.lead_ms,
            Retention(config.audio_ttl_s, config.audio_window_s, config.resend_window_s),
            context.clock,
        )
        self.turn = Turn(self.outbox, config.synthesis_timeout_s)
        self.attempts = 0 if acquired.standing is Standing.CRASH_SUSPECTED else 1
        self._changed = anyio.Event()

    def hand_over(self) -> None:
        """Publish nothing more, at once: another worker continues the turn."""
        self.outbox.settle(PublishOutcome.HANDED_OVER)

    async def run(self, unspoken: tuple[Reason, str] | None) -> PublishOutcome:
        """Speak the turn; or end it ``unspoken``, with this reason and error."""
        with self._context.publisher.open(self.outbox):
            async with anyio.create_task_group() as tasks:
                if unspoken is not None and not self.outbox.must_replay:
                    self._end(*unspoken)
                elif self._attempts_with_this > self._context.config.max_deliveries:
                    self._end("failed", "max_deliveries: no worker survived this request")
                else:
                    self._view.changed = self._react
                    self._react()
                    tasks.start_soon(self._speak)
                    tasks.start_soon(self._limit_pause)
                    tasks.start_soon(self._note_survival)
                    tasks.start_soon(self._resolve_stop)
                await self.outbox.settled()
                self._view.changed = _nothing
                tasks.cancel_scope.cancel()
        return await self.outbox.settled()

    @property
    def _attempts_with_this(self) -> int:
        return self._acquired.attempts + (self._acquired.standing is Standing.CRASH_SUSPECTED)

    # What the session says.

    def _react(self) -> None:
        directive = self._view.directive()
        if directive is Directive.YIELD:
            self.outbox.settle(PublishOutcome.FENCED)
        elif directive in ENDINGS:
            self._end(ENDINGS[directive])
        elif directive is Directive.PAUSE:
            self.turn.pause()
        else:
            self.turn.resume()
        self._changed.set()
        self._changed = anyio.Event()

    def _end(self, reason: Reason, error: str = "") -> None:
        """End the turn now: frames that have not left are discarded."""
        if not self.turn.is_stopped and self.outbox.end_now(reason, error):
            self.reason, self.error = reason, error
        if not self.outbox.must_replay:
            self.turn.stop()

    async def _limit_pause(self) -> None:
        """End the turn when it is paused for longer than ``pause_timeout_s``."""
        while True:
            changed = self._changed
            if self._view.directive() is Directive.PAUSE:
                with anyio.move_on_after(self._context.config.pause_timeout_s) as limit:
                    while self._view.directive() is Directive.PAUSE:
                        await self._changed.wait()
                if limit.cancelled_caught:
                    self._end("stopped", "pause_timeout")
                    return
            else:
                await changed.wait()

    async def _resolve_stop(self) -> None:
        """Find out whether ``stop:<request>`` names a request that is queued after this one."""
        while True:
            changed = self._changed
            named = self._view.unresolved
            if named is not None:
                session = self._request.session
                if await self._context.queues.is_added_later(self._delivery, session, named):
                    self._view.cover(named)
            await changed.wait()

    # Speaking.

    async def _begin_attempt(self) -> None:
        if self._acquired.standing is Standing.CRASH_SUSPECTED:
            await anyio.sleep(random.uniform(*CRASH_SUSPECTED_WAIT_S))  # noqa: S311
            self.attempts = 1
            await self._context.sessions.begin_attempt(self._request.session, self._acquired.epoch)

    async def _note_survival(self) -> None:
        """Clear the count of attempts once the turn has made all the audio that it may make ahead.

        A paused turn would not clear it by publishing frames.
        """
        if self._acquired.standing is not Standing.NEW:
            await self.outbox.filled.wait()
            await self._context.sessions.survived(self._request.session, self._acquired.epoch)

    async def _speak(self) -> None:
        await self._begin_attempt()
        try:
            async with self._context.pool.hold(self._delivery.model) as loaded_model:
                failure = await self._speak_with(loaded_model)
        except CannotSpeakError as error:
            self._end("rejected", str(error))
        except Exception as error:
            self._fail(error)
        else:
            if self.turn.is_stopped:
                return
            if failure is not None:
                self.reason, self.error = "failed", failure
            self.outbox.close(self.reason, self.error)

    async def _speak_with(self, loaded_model: LoadedModel) -> str | None:
        """Speak to the end of the text; returns what was wrong with the text, if anything was."""
        context, request, acquired = self._context, self._request, self._acquired
        prepared = await prepare(
            request,
            loaded_model,
            context.audio.true_peak_dbtp,
            points=Trail.decode(acquired.resume),
            first_frame=max(acquired.last + 1, 1),
        )
        self.outbox.start(
            {
                "request": request.name,
                "model": self._delivery.model,
                "voice": prepared.spec.voice,
                "worker": context.name,
                "sample_rate": str(request.sample_rate),
                "frame_ms": str(FRAME_MS),
                "format": FORMAT,
                "channels": str(CHANNELS),
                "t": str(context.clock.now_ms()),
            }
        )
        limits = loaded_model.info.limits_for(streamed=request.stream)
        config = context.config
        feed = TextFeed(
            *(limits, config.text_timeout_s, config.max_stream_chars, config.text_settle_ms / 1000)
        )
        async with self._text(feed):
            await self.turn.run(prepared, feed)
        return feed.failure

    @asynccontextmanager
    async def _text(self, feed: TextFeed) -> AsyncGenerator[None]:
        """Fill the feed with the turn's text, or keep filling it from the text stream."""
        request = self._request
        if request.stream:
            key = self._context.keys.text(request.session, request.name)
            mark = partial(
                self._context.sessions.mark_text, key, request.session, self._acquired.epoch
            )
            async with stream_text(self._context.watch, key, feed, self._text_log, mark):
                yield
        else:
            feed.push(TextPiece(text=request.text or "", end=True))
            yield

    def _fail(self, error: Exception) -> None:
        """Leave the request to another attempt; end the turn if there may be none."""
        is_last = self._attempts_with_this >= self._context.config.max_deliveries
        log.warning(
            "engine_failed",
            error=f"{type(error).__name__}: {error}",
            attempt=self._attempts_with_this,
            gives_up=is_last,
        )
        if is_last:
            self.reason, self.error = "failed", f"{type(error).__name__}: {error}"
            self.outbox.close(self.reason, self.error)
        else:
            self.outbox.settle(PublishOutcome.ENGINE_FAILED)


def _nothing() -> None:
    """Ignore changes: the turn is over."""
