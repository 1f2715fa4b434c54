"""How much of a session's stream is kept, and for how long."""

from collections import deque
from typing import Final

import msgspec

from voicefleet.schemas.audio import FRAMES_PER_S, bytes_per_frame

FASTER_KEPT_S: Final = 120.0
"""Audio kept beyond the window of a turn that is made faster than real time: 12 MB at 48 kHz.
Without this limit, the window of one fast turn could hold ten times as much."""

START_AND_END_SHARE: Final = 0.2
"""Start and end entries for each frame of the window, where turns are short."""


class Retention(msgspec.Struct, frozen=True):
    """How long audio is kept, in seconds: see the configuration of the worker."""

    audio_ttl_s: float
    audio_window_s: float
    resend_window_s: float


class Window:
    """How many entries of the stream to keep, while a turn grows from entry ``number`` on."""

    def __init__(self, audio_window_s: float, number: int, now: float) -> None:
        self._window_s = audio_window_s
        self._left = deque([(now, number)])

    def entries(self, until: int, now: float) -> int:
        """How many to keep when all entries before ``until`` were sent.

        At least the last ``audio_window_s`` of audio, and all that was sent within that time, up
        to ``FASTER_KEPT_S`` more audio.
        """
        self._left.append((now, until))
        while self._left[0][0] < now - self._window_s:
            self._left.popleft()
        within = until - self._left[0][1]
        window = int(self._window_s * FRAMES_PER_S)
        return entries_to_keep(min(max(window, within), window + int(FASTER_KEPT_S * FRAMES_PER_S)))


def entries_to_keep(frames: int) -> int:
    """How many of a stream's newest entries hold its last ``frames`` frames for certain."""
    return int(frames * (1 + START_AND_END_SHARE)) + FRAMES_PER_S


ENTRY_OVERHEAD_BYTES: Final = 47
"""Memory of the server that a frame's entry takes beside its PCM: measured at 48 kHz."""


def session_mb(audio_window_s: float, sample_rate: int) -> float:
    """Memory of the server that the kept audio of one session takes, in MB (10^6 bytes)."""
    entries = entries_to_keep(int(audio_window_s * FRAMES_PER_S))
    return entries * (bytes_per_frame(sample_rate) + ENTRY_OVERHEAD_BYTES) / 1e6
