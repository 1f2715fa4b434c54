"""How much of a session's stream is kept, and for how long."""

from collections import deque
from typing import Final

import msgspec

from voicefleet.schemas.audio import FRAMES_PER_S, bytes_per_frame

FASTER_KEPT_S: Final = 120.0
"""Audio kept beyond the window where it is made faster than real time: 12 MB at 48 kHz. Without a
limit a minute of a fast engine's is ten times more, of each session."""

START_AND_END_SHARE: Final = 0.2
"""Entries that are no frames, for each frame of the window, where turns are short."""


class Retention(msgspec.Struct, frozen=True):
    """How long things are kept, in seconds: config ``worker``."""

    audio_ttl_s: float
    audio_window_s: float
    resend_window_s: float


class Window:
    """How many entries of one turn's stream to keep, as the turn grows from entry ``number``."""

    def __init__(self, audio_window_s: float, number: int, now: float) -> None:
        self._window_s = audio_window_s
        self._left = deque([(now, number)])

    def entries(self, until: int, now: float) -> int:
        """The window in audio, and in time, up to ``FASTER_KEPT_S`` more; ``until`` has left."""
        self._left.append((now, until))
        while self._left[0][0] < now - self._window_s:
            self._left.popleft()
        within = until - self._left[0][1]
        window = int(self._window_s * FRAMES_PER_S)
        return entries_to_keep(min(max(window, within), window + int(FASTER_KEPT_S * FRAMES_PER_S)))


def entries_to_keep(frames: int) -> int:
    """How many entries of a stream are sure to hold its last ``frames`` frames."""
    return int(frames * (1 + START_AND_END_SHARE)) + FRAMES_PER_S


ENTRY_OVERHEAD_BYTES: Final = 47
"""Memory of the server that a frame's entry takes beside its PCM: measured at 48 kHz."""


def session_mb(audio_window_s: float, sample_rate: int) -> float:
    """Memory of the server that the kept audio of one session takes, in MB (10^6 bytes)."""
    entries = entries_to_keep(int(audio_window_s * FRAMES_PER_S))
    return entries * (bytes_per_frame(sample_rate) + ENTRY_OVERHEAD_BYTES) / 1e6
