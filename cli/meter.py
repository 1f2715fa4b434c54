"""A line about a turn: session, turn, frames, latency of the first audio."""

import sys
import time
from types import TracebackType
from typing import Self

from voicefleet.cli.status_line import StatusLine
from voicefleet.producer.turn import Turn
from voicefleet.schemas import FRAME_MS, Frame


class Meter:
    """Shows a turn on stderr. The latency is measured from the meter's creation.

    Prints a line at the end. ``live`` also shows it while the turn is spoken, which would disturb
    a user who types into the same terminal.
    """

    def __init__(self, turn: Turn, *, live: bool = True) -> None:
        self._turn = turn
        self._created = time.monotonic()
        self._status = StatusLine() if live else None
        self.frames = 0
        self.first_audio_ms: float | None = None

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.show(f"session {self._turn.session}: waiting for the first frame")
        return self

    def count(self, frame: Frame) -> None:
        """Count a frame that arrived."""
        if self.first_audio_ms is None:
            self.first_audio_ms = (time.monotonic() - self._created) * 1000
        self.frames += 1
        if self._status is not None:
            self._status.show(self.line())

    def line(self) -> str:
        """The line as of now."""
        parts = [f"session {self._turn.session}"]
        if (entry := self._turn.end or self._turn.start) is not None:
            parts.append(f"turn {entry.id.turn}")
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
        if self._status is not None:
            self._status.clear()
        if exc is None or self.frames:
            print(self.line(), file=sys.stderr, flush=True)
