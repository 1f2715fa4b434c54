"""A simulated listener, which plays audio in real time and records underruns."""

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

AUDIBLE: Final = 10 ** (-50 / 20)
"""The share of the peak above which a sample counts as audible."""

HEAD_S: Final = 3.0
"""How much of a turn is searched for its first audible sample."""


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """One turn as its listener heard it. Times are in seconds on the monotonic clock.

    ``first_piece_s`` is the duration of the first audio, within which the next must come.
    ``late_s`` has an entry for each underrun: how late the needed sample was.
    """

    asked_at: float
    opened_at: float
    first_at: float
    audible_at: float
    last_at: float
    audio_s: float
    first_piece_s: float
    late_s: tuple[float, ...]
    stop_s: float | None = None
    failed: str | None = None


class Playback:
    """Plays audio as it arrives.

    Playback begins with the first piece. A piece that arrives after the one before has been played
    is an underrun: playback pauses until then, and everything after is that much later.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.produced = 0
        self.first_samples = 0
        self.first_at: float | None = None
        self.last_at = 0.0
        self.late_s: list[float] = []
        self._clock = 0.0
        self._head: list[NDArray[np.float32]] = []
        self._pieces: list[tuple[int, float]] = []

    def arrive(self, at: float, samples: NDArray[np.float32]) -> None:
        """Add a piece that arrived at ``at``."""
        if self.first_at is None:
            self.first_at = self._clock = at
            self.first_samples = len(samples)
        needed = self._clock + self.produced / self.rate
        if at > needed:
            self.late_s.append(at - needed)
            self._clock += at - needed
            needed = at
        if self.produced < HEAD_S * self.rate:
            self._head.append(samples)
            self._pieces.append((self.produced, needed))
        self.produced += len(samples)
        self.last_at = at

    def taken(self, now: float) -> int:
        """How many samples have been played by ``now``."""
        if self.first_at is None:
            return 0
        return max(0, min(self.produced, int((now - self._clock) * self.rate)))

    @property
    def ends_at(self) -> float:
        """When all audio that has arrived will have been played."""
        return self._clock + self.produced / self.rate

    @property
    def audible_at(self) -> float:
        """When the first sample above -50 dB of the peak was played; NaN if there is none."""
        head = np.abs(np.concatenate(self._head)) if self._head else np.zeros(0)
        if not head.any():
            return float("nan")
        first = int(np.argmax(head > AUDIBLE * head.max()))
        start, played_at = max(piece for piece in self._pieces if piece[0] <= first)
        return played_at + (first - start) / self.rate
