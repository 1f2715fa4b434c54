"""Frames for one consumer in this process: the local adapter's counterpart of the outbox."""

import time
from collections import deque
from collections.abc import Sequence
from typing import Final

import anyio

from voicefleet.worker.publish.pacing import Pacer, TickClock
from voicefleet.worker.synthesis.turn import TurnFrame

MADE_AHEAD_FRAMES: Final = 100
"""How many frames may wait for the consumer, unless the lead is more: 2 s of audio."""


class FrameQueue:
    """A ``FrameSink`` whose consumer gets frames at most ``lead_ms`` ahead of real time."""

    def __init__(self, lead_ms: int) -> None:
        self._pacer = Pacer(lead_ms)
        self._ticks = TickClock()
        self._capacity = max(self._pacer.lead_frames or 0, MADE_AHEAD_FRAMES)
        self._frames: deque[TurnFrame] = deque()
        self._paused = False
        self._closed = False
        self._error: Exception | None = None
        self._changed = anyio.Event()

    async def put(self, frames: Sequence[TurnFrame]) -> None:
        """Wait for room and add the frames; drop them after ``close``."""
        while not self._closed and len(self._frames) >= self._capacity:
            await self._changed.wait()
        if not self._closed:
            self._frames.extend(frames)
            self._notify()

    def pause(self) -> None:
        """Give out no frame until ``resume``."""
        self._paused = True

    def resume(self) -> None:
        """Continue with the next frame."""
        self._paused = False
        self._notify()

    def close(self, error: Exception | None = None) -> None:
        """Take no more frames. ``get`` gives out those that wait, then raises ``error``."""
        if not self._closed:
            self._closed, self._error = True, error
            self._notify()

    def end_now(self, error: Exception | None = None) -> None:
        """Take no more frames and drop those that wait."""
        self._closed, self._error = True, error
        self._frames.clear()
        self._notify()

    async def get(self) -> TurnFrame | None:
        """Wait for the next frame and return it when it is due; ``None`` after the last one.

        Raises:
            Exception: The ``error`` of ``close`` or ``end_now``.
        """
        while True:
            tick = self._ticks.tick()
            room = self._pacer.due(tick)
            if self._frames and not self._paused:
                if room is None or room > 0:
                    self._pacer.published(1, tick)
                    self._notify()
                    return self._frames.popleft()
                with anyio.move_on_after(self._ticks.at(tick + 1) - time.monotonic()):
                    await self._changed.wait()
            elif self._closed and not self._frames:
                if self._error is not None:
                    raise self._error
                return None
            else:
                await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
