"""One turn: text segments -> engine -> audio chain -> frames, with its states.

Knows neither Redis nor any engine: the fleet and the in-process adapter run this same code, each
with a sink of its own.
"""

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from enum import Enum
from typing import Final, Protocol

import anyio
import msgspec
from anyio.lowlevel import checkpoint_if_cancelled

from voicefleet.worker.audio.chain import AudioChain, Frame, SegmentStart
from voicefleet.worker.audio.resume import ResumePoint
from voicefleet.worker.engines.protocol import Engine, Segment, TurnSpec
from voicefleet.worker.synthesis.watchdog import Stall


class TurnState(Enum):
    """What a turn is doing."""

    IDLE = "idle"
    SYNTHESIZING = "synthesizing"
    PAUSED = "paused"
    STOPPED = "stopped"


TRANSITIONS: Final[dict[TurnState, frozenset[TurnState]]] = {
    TurnState.IDLE: frozenset({TurnState.SYNTHESIZING, TurnState.PAUSED, TurnState.STOPPED}),
    TurnState.SYNTHESIZING: frozenset({TurnState.PAUSED, TurnState.STOPPED, TurnState.IDLE}),
    TurnState.PAUSED: frozenset({TurnState.SYNTHESIZING, TurnState.STOPPED, TurnState.IDLE}),
    TurnState.STOPPED: frozenset(),
}
"""From each state, where it may go. A stopped turn stays stopped; a finished one is idle."""


class InvalidTransitionError(RuntimeError):
    """A turn was asked to go where its state does not lead."""


class TurnFrame(msgspec.Struct, frozen=True):
    """Frame ``n`` of a turn, from 1: 20 ms of signed 16-bit little-endian mono PCM.

    ``text`` is what begins to be spoken in it. ``resume`` is set where a segment begins: the
    turn's latest resume points, encoded for whoever takes it over.
    """

    n: int
    pcm: bytes
    text: str | None = None
    resume: bytes | None = None


class FrameSink(Protocol):
    """Where a turn's frames go."""

    async def put(self, frames: Sequence[TurnFrame]) -> None:
        """Take frames in order; wait while enough of them are waiting to leave."""
        ...

    def pause(self) -> None:
        """Let nothing leave."""
        ...

    def resume(self) -> None:
        """Go on with the next frame."""
        ...


class Trail:
    """The latest resume points of a turn.

    A chain that starts at a point needs a while to settle, and segments can be short: a few
    points are kept, so that one of them lies far enough back.
    """

    KEPT = 4

    def __init__(self, points: Sequence[ResumePoint] = ()) -> None:
        self.points = list(points)

    def note(self, begins: Sequence[SegmentStart]) -> bytes:
        """Add where segments begin; returns the latest points, encoded."""
        known = {point.segment for point in self.points}
        self.points += [
            begin.resume_point
            for begin in begins
            if begin.resumable and begin.segment.index not in known
        ]
        del self.points[: -self.KEPT]
        return msgspec.json.encode(self.points)

    @staticmethod
    def decode(raw: bytes) -> list[ResumePoint]:
        """Read what ``note`` wrote; nothing where there is nothing to read."""
        try:
            return msgspec.json.decode(raw, type=list[ResumePoint]) if raw else []
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return []


class Turn:
    """Speaks one turn into a sink.

    ``pause`` and ``resume`` act on what leaves; making audio stops by itself when the sink is
    full. ``stop`` ends the engine's work within one inner step. ``engine_s`` is the time spent
    waiting for the engine, its text included; ``audio_s`` what it made in that time. An engine
    that has text and makes no audio for ``synthesis_timeout_s`` fails the turn.
    """

    def __init__(self, sink: FrameSink, synthesis_timeout_s: float = math.inf) -> None:
        self._sink = sink
        self._stall = Stall(synthesis_timeout_s)
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
        """Let no further frame leave. Without effect on a turn that is paused or stopped."""
        if self._state in (TurnState.IDLE, TurnState.SYNTHESIZING):
            self._go(TurnState.PAUSED)
            self._sink.pause()

    def resume(self) -> None:
        """Go on with the very next frame. Without effect unless paused."""
        if self._state is TurnState.PAUSED:
            self._go(TurnState.SYNTHESIZING)
            self._sink.resume()

    def stop(self) -> None:
        """Make no more audio. What becomes of frames already made is the sink's owner's choice."""
        if self._state is not TurnState.STOPPED:
            self._go(TurnState.STOPPED)
            self._scope.cancel()

    async def run(
        self,
        engine: Engine,
        spec: TurnSpec,
        segments: AsyncIterator[Segment],
        chain: AudioChain,
        text_of: Callable[[Segment], str],
        points: Sequence[ResumePoint] = (),
    ) -> bool:
        """Speak ``segments`` to their end.

        Args:
            engine: Loaded, and held for the time of the call.
            spec: How to speak.
            segments: From the segment on at which ``chain`` starts.
            chain: New, for this turn alone.
            text_of: The part of the turn's text that a segment speaks.
            points: Resume points known from an earlier owner.

        Returns:
            Whether all was spoken; ``False`` when the turn was stopped.

        Raises:
            EngineError: The engine failed.
        """
        if self._state is TurnState.IDLE:
            self._go(TurnState.SYNTHESIZING)
        trail = Trail(points)
        with self._scope:
            await checkpoint_if_cancelled()
            with self._stall.watched():
                await self._speak(engine, spec, segments, chain, text_of, trail)
            return True
        return False

    async def _speak(
        self,
        engine: Engine,
        spec: TurnSpec,
        segments: AsyncIterator[Segment],
        chain: AudioChain,
        text_of: Callable[[Segment], str],
        trail: Trail,
    ) -> None:
        rate = engine.info.native_rate
        asked = self._stall.begin()
        async with aclosing(engine.speak(spec, self._stall.reading(segments))) as chunks:
            async for chunk in chunks:
                self.engine_s += self._stall.end() - asked
                self.audio_s += len(chunk.samples) / rate
                await self._put(chain.push(chunk), trail, text_of)
                asked = self._stall.begin()
        self._stall.end()
        await self._put(chain.finish(), trail, text_of)

    def finished(self) -> None:
        """All frames have left."""
        if self._state is not TurnState.STOPPED:
            self._go(TurnState.IDLE)

    async def _put(
        self,
        frames: Sequence[Frame],
        trail: Trail,
        text_of: Callable[[Segment], str],
    ) -> None:
        await checkpoint_if_cancelled()  # neither engine nor sink need have waited since a stop
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
