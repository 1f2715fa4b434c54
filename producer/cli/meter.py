"""The live line about a turn: session, turn, frames, latency of the first audio."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console

from producer.turn import Turn
from schemas import FRAME_MS, Frame


class Meter:
    """Watches one turn on stderr. The latency counts from the making of the meter."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._sent = time.monotonic()
        self._console = Console(stderr=True, markup=False, highlight=False)
        self._status = self._console.status(f"{turn.session}: waiting for the first frame")
        self.frames = 0
        self.first_audio_ms: float | None = None
        self._number = 0

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def count(self, frame: Frame) -> None:
        """A frame has come."""
        if self.first_audio_ms is None:
            self.first_audio_ms = (time.monotonic() - self._sent) * 1000
        self.frames += 1
        self._number = frame.id.turn
        self._status.update(self.line())

    def line(self) -> str:
        """What is known now."""
        parts = [f"session {self._turn.session}", f"turn {self._number}"]
        parts.append(f"{self.frames} frames ({self.frames * FRAME_MS / 1000:.2f} s)")
        if self.first_audio_ms is not None:
            parts.append(f"first audio {self.first_audio_ms:.0f} ms")
        if self._turn.end is not None:
            parts.append(self._turn.end.reason)
        return " · ".join(parts)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._status.stop()
        if exc is None or self.frames:
            self._console.print(self.line(), soft_wrap=True)
