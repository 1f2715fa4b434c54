"""A look-ahead true-peak limiter with finite memory.

Output sample k is a function of the input from ``lookback`` samples before k to ``lookahead`` after
it, to the last bit. It does not depend on how the signal is split into chunks, nor, from
``lookback`` samples after its start, on where the limiter was started. The usual recursive
(exponential) release has infinite memory and cannot guarantee that.

The gain is computed in three steps:

1. peaks: the signal interpolated to four times its rate (ITU-R BS.1770-5, annex 2);
2. reduction: how far each peak exceeds the ceiling, held for ``HOLD_MS`` so that a voice's pitch
   periods do not modulate the gain;
3. smoothing with a triangular window as long as the look-ahead, so that the gain has fallen
   smoothly by the time that the peak arrives.
"""

import numpy as np
from numpy.typing import NDArray

from voicefleet.worker.audio.interpolation import HALF_TAPS, TruePeakDetector
from voicefleet.worker.audio.level import linear
from voicefleet.worker.audio.sliding import sliding_max, sliding_sum

Signal = NDArray[np.float64]

ATTACK_MS = 5
"""The gain starts to fall this long before a peak, and takes as long to rise after the hold."""

HOLD_MS = 10
"""The gain is held this long after a peak: a pitch period of a low voice."""

MEMORY_MS = 20
"""No output sample depends on input longer ago than this."""


class TruePeakLimiter:
    """Limits one signal's true peak to a ceiling, in float64.

    Output sample k corresponds to input sample k. Samples withheld for the look-ahead are returned
    by later calls, the last ones by ``finish``.
    """

    def __init__(self, rate: int, ceiling_dbtp: float) -> None:
        self._ceiling = linear(ceiling_dbtp)
        self._detector = TruePeakDetector(self._ceiling)
        # Two box filters of this many samples make the triangular window.
        self._box = max(1, rate * ATTACK_MS // 2000)
        self._attack = 2 * (self._box - 1)
        self._hold = rate * HOLD_MS // 1000
        self.lookahead = self._attack + HALF_TAPS
        self.lookback = self._hold + self._attack + HALF_TAPS
        # Input from ``lookback`` before the next output sample on; silence before the turn.
        self._window: Signal = np.zeros(self.lookback)

    def push(self, samples: Signal) -> Signal:
        """Add float64 ``[n]``; return the samples that are ready, perhaps none."""
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
        """End the signal; return the samples still withheld."""
        return self.push(np.zeros(self.lookahead))

    def _gain(self, peaks: Signal) -> Signal:
        """The gain of the ready samples, computed from the peaks around them."""
        reduction = 1.0 - self._ceiling / np.maximum(peaks, self._ceiling)
        held = sliding_max(reduction, self._hold + self._attack + 1)
        smoothed = sliding_sum(sliding_sum(held, self._box), self._box)
        return 1.0 - smoothed / (self._box * self._box)


def limited(samples: NDArray[np.floating], rate: int, ceiling_dbtp: float) -> Signal:
    """Limit a whole signal, ``[n]``."""
    limiter = TruePeakLimiter(rate, ceiling_dbtp)
    head = limiter.push(np.asarray(samples, dtype=np.float64))
    return np.concatenate((head, limiter.finish()))
