"""One turn: text segments -> engine -> audio chain -> frames, with its states.

It knows neither Redis nor any engine family. Fleet and in-process adapter run this same code and
differ in the sink alone. docs/architecture.md draws the states.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import aclosing
from enum import Enum
from typing import Final, Protocol

import anyio
import msgspec
from anyio.lowlevel import checkpoint_if_cancelled

from voicefleet.worker.audio.chain import Frame, SegmentStart
from voicefleet.worker.audio.resume import ResumePoint
from voicefleet.worker.engines.protocol import Segment
from voicefleet.worker.synthesis.prepared_turn import PreparedTurn
from voicefleet.worker.synthesis.watchdog import Watchdog
from voicefleet.worker.text.feed import TextFeed


class TurnState(Enum):
    """What a turn is doing."""

    IDLE = "idle"
    """Not begun, or all its frames have left."""
    SYNTHESIZING = "synthesizing"
    """The engine makes audio, or frames that it made are waiting to leave."""
    PAUSED = "paused"
    """No frame leaves; the engine makes audio until the sink is full."""
    STOPPED = "stopped"
    """The engine's work was ended."""


TRANSITIONS: Final[dict[TurnState, frozenset[TurnState]]] = {
    TurnState.IDLE: frozenset({TurnState.SYNTHESIZING, TurnState.PAUSED, TurnState.STOPPED}),
    TurnState.SYNTHESIZING: frozenset({TurnState.PAUSED, TurnState.STOPPED, TurnState.IDLE}),
    TurnState.PAUSED: frozenset({TurnState.SYNTHESIZING, TurnState.STOPPED, TurnState.IDLE}),
    TurnState.STOPPED: frozenset(),
}
"""The states that each state may lead to. Nothing leads out of ``STOPPED``."""


class InvalidTransitionError(RuntimeError):
    """A job or a turn was told to enter a state that its present one does not lead to."""


class TurnFrame(msgspec.Struct, frozen=True):
    """Frame ``n`` of a turn, counted from 1: 20 ms of signed 16-bit little-endian mono PCM.

    ``text`` is the part of the text whose speech begins in this frame. Where a segment begins,
    ``resume`` holds the turn's latest resume points, as ``Trail`` encodes them for a take-over.
    """

    n: int
    pcm: bytes
    text: str | None = None
    resume: bytes | None = None


class FrameSink(Protocol):
    """Where a turn's frames go."""

    async def put(self, frames: Sequence[TurnFrame]) -> None:
        """Take frames, in order; wait while the sink is full."""
        ...

    def pause(self) -> None:
        """Let no further frame leave."""
        ...

    def resume(self) -> None:
        """Let frames leave again, from the next one on."""
        ...


class Trail:
    """The latest resume points of a turn.

    An audio chain that starts at a point needs some audio before its output is exact, and segments
    can be short. So the last few points are kept: one of them lies far enough back.
    """

    KEPT = 4

    def __init__(self, points: Sequence[ResumePoint] = ()) -> None:
        self.points = list(points)

    def note(self, begins: Sequence[SegmentStart]) -> bytes:
        """Add the beginnings of segments; returns the latest points, encoded as JSON."""
        noted = {point.segment for point in self.points}
        self.points += [
            begin.resume_point
            for begin in begins
            if begin.resumable and begin.segment.index not in noted
        ]
        del self.points[: -self.KEPT]
        return msgspec.json.encode(self.points)

    @staticmethod
    def decode(raw: bytes) -> list[ResumePoint]:
        """Decode what ``note`` returned; an empty list where that is empty or unreadable."""
        try:
            return msgspec.json.decode(raw, type=list[ResumePoint]) if raw else []
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return []


class Turn:
    """Speaks one turn into a sink.

    ``pause`` holds frames back in the sink; a full sink then makes the engine wait. ``stop`` ends
    the engine's work within one of its inner steps. ``engine_s`` counts the seconds spent waiting
    for the engine, including its waits for text, and ``audio_s`` the seconds of audio it made.

    Args:
        sink: Takes the frames.
        synthesis_timeout_s: The turn fails when the engine has text and makes no audio for so long.
    """

    def __init__(self, sink: FrameSink, synthesis_timeout_s: float = math.inf) -> None:
        self._sink = sink
        self._watchdog = Watchdog(synthesis_timeout_s)
        self._state = TurnState.IDLE
        self._scope = anyio.CancelScope()
        self.engine_s = 0.0
        self.audio_s = 0.0

    @property
    def state(self) -> TurnState:
        """What the turn is doing."""
        return self._state

    @property
    def is_stopped(self) -> bool:
        """Whether ``stop`` was called."""
        return self._state is TurnState.STOPPED

    def pause(self) -> None:
        """Let no further frame leave. Has no effect on a turn that is paused or stopped."""
        if self._state in (TurnState.IDLE, TurnState.SYNTHESIZING):
            self._go(TurnState.PAUSED)
            self._sink.pause()

    def resume(self) -> None:
        """Continue with the very next frame. Has no effect unless paused."""
        if self._state is TurnState.PAUSED:
            self._go(TurnState.SYNTHESIZING)
            self._sink.resume()

    def stop(self) -> None:
        """Make no more audio. The owner of the sink decides about the frames already made."""
        if self._state is not TurnState.STOPPED:
            self._go(TurnState.STOPPED)
            self._scope.cancel()

    async def run(self, prepared: PreparedTurn, feed: TextFeed) -> bool:
        """Speak the feed's text to its end, or until ``stop``.

        Args:
            prepared: New, for this call alone; its model stays loaded for the time of the call.
            feed: The turn's text, from its beginning.

        Returns:
            ``True`` when all was spoken, ``False`` when the turn was stopped.

        Raises:
            EngineError: The engine failed, or stalled for ``synthesis_timeout_s``.
        """
        if self._state is TurnState.IDLE:
            self._go(TurnState.SYNTHESIZING)
        with self._scope:
            await checkpoint_if_cancelled()
            with self._watchdog.watching():
                await self._speak(prepared, feed)
            return True
        return False

    async def _speak(self, prepared: PreparedTurn, feed: TextFeed) -> None:
        engine, chain, trail = prepared.engine, prepared.chain, Trail(prepared.points)
        segments = self._watchdog.reading(feed.segments(prepared.first_segment))
        rate = engine.info.native_rate
        asked = self._watchdog.begin()
        async with aclosing(engine.speak(prepared.spec, segments)) as chunks:
            async for chunk in chunks:
                self.engine_s += self._watchdog.end() - asked
                self.audio_s += len(chunk.samples) / rate
                await self._put(chain.push(chunk), trail, feed.text_of)
                asked = self._watchdog.begin()
        self._watchdog.end()
        await self._put(chain.finish(), trail, feed.text_of)

    def finished(self) -> None:
        """Note that all frames have left: the turn is idle, unless it was stopped."""
        if self._state is not TurnState.STOPPED:
            self._go(TurnState.IDLE)

    async def _put(
        self,
        frames: Sequence[Frame],
        trail: Trail,
        text_of: Callable[[Segment], str],
    ) -> None:
        # An engine and a sink that never wait would not notice a stop.
        await checkpoint_if_cancelled()
        out: list[TurnFrame] = []
        for frame in frames:
            if frame.marks:
                text = "".join(text_of(mark.segment) for mark in frame.marks)
                out.append(TurnFrame(frame.n, frame.pcm, text, trail.note(frame.marks)))
            else:
                out.append(TurnFrame(frame.n, frame.pcm))
        if out:
            await self._sink.put(out)

    def _go(self, state: TurnState) -> None:
        if state not in TRANSITIONS[self._state]:
            raise InvalidTransitionError(f"{self._state.value} does not lead to {state.value}")
        self._state = state
