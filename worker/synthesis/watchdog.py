"""A limit on how long an engine may make no audio while it has text to speak."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import contextmanager

import anyio

from voicefleet.worker.engines.protocol import EngineError, Segment


class EngineStalledError(EngineError):
    """The engine had text to speak and made no audio within the limit."""


class Watchdog:
    """Measures how long one turn's engine has been busy: asked for audio and not reading text."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._asked = self._reading = False
        self._busy_since: float | None = None

    def begin(self) -> float:
        """Note that the engine is asked for audio; returns the monotonic time."""
        self._asked = True
        return self._note()

    def end(self) -> float:
        """Note that the engine gave audio; returns the monotonic time."""
        self._asked = False
        return self._note()

    async def reading(self, segments: AsyncIterator[Segment]) -> AsyncGenerator[Segment]:
        """Pass segments on to the engine, which may read ahead, and in another task."""
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
    def watching(self) -> Generator[None]:
        """Cancel the block when the engine has been busy for the limit.

        Raises:
            EngineStalledError: That happened.
        """
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None
        has_stalled = False

        def check() -> None:
            nonlocal timer, has_stalled
            now = time.monotonic()
            since = now if self._busy_since is None else self._busy_since
            has_stalled = now - since >= self._limit_s
            if has_stalled:
                scope.cancel()
            else:
                timer = loop.call_later(since + self._limit_s - now, check)

        with anyio.CancelScope() as scope:
            if math.isfinite(self._limit_s):
                check()
            try:
                yield
            finally:
                if timer is not None:
                    timer.cancel()
        if has_stalled:
            raise EngineStalledError(f"no audio for {self._limit_s:g} s")
