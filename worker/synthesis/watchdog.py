"""A limit on how long an engine may make no audio, though it has text to speak."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import contextmanager

import anyio

from voicefleet.worker.engines.protocol import EngineError, Segment


class EngineStalledError(EngineError):
    """The engine had text to speak, and made no audio for as long as it may."""


class Stall:
    """Knows since when one turn's engine is at work: asked for audio, and not waiting for text."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._asked = self._reading = False
        self._busy_since: float | None = None

    def begin(self) -> float:
        """The engine is asked for audio; returns the time on the monotonic clock."""
        self._asked = True
        return self._note()

    def end(self) -> float:
        """It gave some; returns the time on the monotonic clock."""
        self._asked = False
        return self._note()

    async def reading(self, segments: AsyncIterator[Segment]) -> AsyncGenerator[Segment]:
        """The segments, which may be read ahead of the audio, and in another task."""
        while True:
            self._reading = True
            self._note()
            segment = await anext(segments, None)
            self._reading = False
            self._note()
            if segment is None:
                return
            yield segment

    def _note(self) -> float:
        now = time.monotonic()
        if self._reading or not self._asked:
            self._busy_since = None
        elif self._busy_since is None:
            self._busy_since = now
        return now

    @contextmanager
    def watched(self) -> Generator[None]:
        """Hold the block to the limit.

        Raises:
            EngineStalledError: The engine has been at work for longer.
        """
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None
        is_over = False

        def look() -> None:
            nonlocal timer, is_over
            now = time.monotonic()
            since = now if self._busy_since is None else self._busy_since
            is_over = now - since >= self._limit_s
            if is_over:
                scope.cancel()
            else:
                timer = loop.call_later(since + self._limit_s - now, look)

        with anyio.CancelScope() as scope:
            if math.isfinite(self._limit_s):
                look()
            try:
                yield
            finally:
                if timer is not None:
                    timer.cancel()
        if is_over:
            raise EngineStalledError(f"no audio for {self._limit_s:g} s")
