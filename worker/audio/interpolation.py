"""Peaks between the samples, by fourfold interpolation (ITU-R BS.1770-5, annex 2)."""

import math

import numpy as np
from numpy.typing import NDArray

from voicefleet.worker.audio.sliding import sliding_max

Signal = NDArray[np.float64]

REACH = 8
"""Samples used on either side of an interpolated value."""

_KAISER_BETA = 5.0


def _interpolator(fraction: float) -> Signal:
    """Taps ``[2 * REACH]`` that give the signal ``fraction`` of a sample after the REACH-th."""
    distance = np.arange(2 * REACH) - (REACH - 1) - fraction
    window = np.i0(_KAISER_BETA * np.sqrt(1.0 - np.square(distance / REACH)))
    taps = np.sinc(distance) * window
    return taps / math.fsum(taps)


_QUARTER = _interpolator(0.25)
_HALF = _interpolator(0.5)

# The taps at 3/4 are those at 1/4 reversed. With the samples folded around the middle into sums s
# and differences d, the two values are E + O and E - O, E = even . s, O = odd . d, and the larger
# of their magnitudes is |E| + |O|.
_EVEN = (_QUARTER[:REACH] + _QUARTER[: REACH - 1 : -1]) / 2.0
_ODD = (_QUARTER[:REACH] - _QUARTER[: REACH - 1 : -1]) / 2.0

OVERSHOOT = max(math.fsum(np.abs(_QUARTER)), math.fsum(np.abs(_HALF)))
"""An interpolated value is at most this many times the largest sample it is made of."""


class TruePeakDetector:
    """Finds peaks above a ceiling; what is far below it is not looked at closely."""

    def __init__(self, ceiling: float) -> None:
        # A hair of headroom for rounding in the sums of products.
        self._harmless = ceiling / (OVERSHOOT * (1.0 + 1e-9))

    def cannot_exceed(self, window: Signal) -> bool:
        """Whether no value on or between these samples can be above the ceiling."""
        return bool(max(window.max(), -window.min()) <= self._harmless)

    def peaks(self, window: Signal) -> Signal:
        """The peak from each sample up to the next, for all samples with REACH neighbours.

        Returns:
            float64 ``[len(window) - 2 * REACH]``, from ``window[REACH]`` on. Exact where it could
            be above the ceiling, elsewhere perhaps the magnitude of the sample alone.
        """
        magnitude = np.abs(window)
        peaks = magnitude[REACH:-REACH].copy()
        # Only where one of the samples around is loud can a value between them be too high.
        near = sliding_max(magnitude[1:] > self._harmless, 2 * REACH)
        if not near.any():
            return peaks
        # The samples that those values are made of, moved together: neighbours stay neighbours
        # there, and what is computed across the joints is not used.
        centre = np.zeros(len(window) + 2 * REACH, dtype=np.bool)
        centre[2 * REACH : -2 * REACH] = near
        needed = sliding_max(centre, 2 * REACH + 1)
        between = _interpolated_peaks(window[needed])
        near_needed = centre[REACH:-REACH][needed]
        peaks[near] = np.maximum(peaks[near], between[near_needed[REACH:-REACH]])
        return peaks


def _interpolated_peaks(samples: Signal) -> Signal:
    """The largest magnitude 1/4, 1/2 and 3/4 of the way from a sample to the next.

    Takes float64 ``[n]`` and returns ``[n - 2 * REACH]``, from ``samples[REACH]`` on.
    """
    length = len(samples) - 2 * REACH
    even, odd, half = np.zeros((3, length))
    for k in range(REACH):
        left = samples[1 + k : 1 + k + length]
        right = samples[2 * REACH - k : 2 * REACH - k + length]
        total = left + right
        even += _EVEN[k] * total
        half += _HALF[k] * total
        odd += _ODD[k] * (left - right)
    return np.maximum(np.abs(half), np.abs(even) + np.abs(odd))
