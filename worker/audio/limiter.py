"""A look-ahead true-peak limiter whose memory is finite.

Sample k of the output is a fixed function of the input from ``lookback`` samples before k to
``lookahead`` after it, to the last bit: however the signal is cut into chunks, and wherever a
limiter was started in it, the same samples come out once its start lies ``lookback`` behind.
Recursive (exponential) release, the usual design, never forgets and could not promise that.

Three steps lead from signal to gain:

1. peaks: the signal interpolated to four times its rate (ITU-R BS.1770-5, annex 2);
2. reduction: how much each peak is too high, held for ``HOLD_MS`` so that a voice's pitch
   periods do not modulate the gain;
3. smoothing by a triangular window as long as the look-ahead, so that the gain has come down,
   without a corner, when the peak arrives.
"""

import numpy as np
from numpy.typing import NDArray

from voicefleet.worker.audio.interpolation import REACH, TruePeakDetector
from voicefleet.worker.audio.level import linear
from voicefleet.worker.audio.sliding import sliding_max, sliding_sum

Signal = NDArray[np.float64]

ATTACK_MS = 5
"""The gain starts to fall this long before a peak, and rises for as long after the hold."""

HOLD_MS = 10
"""The gain stays down this long after a peak: a pitch period of a low voice."""

MEMORY_MS = 20
"""No output sample depends on input longer ago than this."""


class TruePeakLimiter:
    """Holds one signal's true peak at or below a ceiling. Works in float64.

    Output sample k belongs to input sample k: what the look-ahead holds back comes with later
    calls, the last of it from ``finish``.
    """

    def __init__(self, rate: int, ceiling_dbtp: float) -> None:
        self._ceiling = linear(ceiling_dbtp)
        self._detector = TruePeakDetector(self._ceiling)
        # Two boxes of this many samples make the triangle.
        self._box = max(1, rate * ATTACK_MS // 2000)
        self._attack = 2 * (self._box - 1)
        self._hold = rate * HOLD_MS // 1000
        self.lookahead = self._attack + REACH
        self.lookback = self._hold + self._attack + REACH
        # The input from ``lookback`` before the next output sample on; silence before the turn.
        self._window: Signal = np.zeros(self.lookback)

    def push(self, samples: Signal) -> Signal:
        """Take float64 ``[n]``; return the samples that are ready, in all as many as came in."""
        self._window = np.concatenate((self._window, samples))
        ready = len(self._window) - self.lookback - self.lookahead
        if ready <= 0:
            return self._window[:0]
        window = self._window
        self._window = window[ready:].copy()
        output = window[self.lookback : self.lookback + ready]
        if self._detector.cannot_exceed(window):
            return output
        peaks = self._detector.peaks(window)
        if peaks.max() <= self._ceiling:
            return output
        return output * self._gain(peaks)

    def finish(self) -> Signal:
        """Return the samples still held back. The signal ends here."""
        return self.push(np.zeros(self.lookahead))

    def _gain(self, peaks: Signal) -> Signal:
        """The gain of the ready samples, from the peaks around them."""
        reduction = 1.0 - self._ceiling / np.maximum(peaks, self._ceiling)
        held = sliding_max(reduction, self._hold + self._attack + 1)
        smoothed = sliding_sum(sliding_sum(held, self._box), self._box)
        return 1.0 - smoothed / (self._box * self._box)


def limited(samples: NDArray[np.floating], rate: int, ceiling_dbtp: float) -> Signal:
    """A whole signal, limited."""
    limiter = TruePeakLimiter(rate, ceiling_dbtp)
    head = limiter.push(np.asarray(samples, dtype=np.float64))
    return np.concatenate((head, limiter.finish()))
