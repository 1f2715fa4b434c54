"""True peaks between samples, by fourfold interpolation (ITU-R BS.1770-5, annex 2)."""

import math

import numpy as np
from numpy.typing import NDArray

from voicefleet.worker.audio.sliding import sliding_max

Signal = NDArray[np.float64]

HALF_TAPS = 8
"""How many samples on either side an interpolated value is computed from."""

_KAISER_BETA = 5.0


def _interpolator(fraction: float) -> Signal:
    """Filter taps ``[2 * HALF_TAPS]`` for the value ``fraction`` of a sample after the middle."""
    distance = np.arange(2 * HALF_TAPS) - (HALF_TAPS - 1) - fraction
    window = np.i0(_KAISER_BETA * np.sqrt(1.0 - np.square(distance / HALF_TAPS)))
    taps = np.sinc(distance) * window
    return taps / math.fsum(taps)


_QUARTER = _interpolator(0.25)
_HALF = _interpolator(0.5)

# The taps at 3/4 are those at 1/4 reversed. With the samples folded around the middle into sums s
# and differences d, the two values are E + O and E - O, E = even . s, O = odd . d, and the larger
# of their magnitudes is |E| + |O|.
_EVEN = (_QUARTER[:HALF_TAPS] + _QUARTER[: HALF_TAPS - 1 : -1]) / 2.0
_ODD = (_QUARTER[:HALF_TAPS] - _QUARTER[: HALF_TAPS - 1 : -1]) / 2.0

OVERSHOOT = max(math.fsum(np.abs(_QUARTER)), math.fsum(np.abs(_HALF)))
"""The largest ratio of an interpolated value to the largest sample that it is computed from."""


class TruePeakDetector:
    """Finds true peaks above a ceiling; interpolates only where samples come near it."""

    def __init__(self, ceiling: float) -> None:
        # A little headroom for rounding in the sums of products.
        self._harmless = ceiling / (OVERSHOOT * (1.0 + 1e-9))

    def cannot_exceed(self, window: Signal) -> bool:
        """Whether no value on or between these samples can exceed the ceiling."""
        return bool(max(window.max(), -window.min()) <= self._harmless)

    def peaks(self, window: Signal) -> Signal:
        """The peak between each sample and the next, for samples with enough neighbours.

        Returns:
            float64 ``[len(window) - 2 * HALF_TAPS]``, from ``window[HALF_TAPS]`` on. Exact if it
            could exceed the ceiling, otherwise perhaps only the sample's magnitude.
        """
        magnitude = np.abs(window)
        peaks = magnitude[HALF_TAPS:-HALF_TAPS].copy()
        # A value can exceed the ceiling only if one of the samples around it is loud.
        near = sliding_max(magnitude[1:] > self._harmless, 2 * HALF_TAPS)
        if not near.any():
            return peaks
        # Compute on the samples needed for those values alone, concatenated. Values across the
        # joints are not used.
        centre = np.zeros(len(window) + 2 * HALF_TAPS, dtype=np.bool)
        centre[2 * HALF_TAPS : -2 * HALF_TAPS] = near
        needed = sliding_max(centre, 2 * HALF_TAPS + 1)
        between = _interpolated_peaks(window[needed])
        near_needed = centre[HALF_TAPS:-HALF_TAPS][needed]
        peaks[near] = np.maximum(peaks[near], between[near_needed[HALF_TAPS:-HALF_TAPS]])
        return peaks


def _interpolated_peaks(samples: Signal) -> Signal:
    """The largest magnitude 1/4, 1/2 and 3/4 of the way from a sample to the next.

    Takes float64 ``[n]`` and returns ``[n - 2 * HALF_TAPS]``, from ``samples[HALF_TAPS]`` on.
    """
    length = len(samples) - 2 * HALF_TAPS
    even, odd, half = np.zeros((3, length))
    for k in range(HALF_TAPS):
        left = samples[1 + k : 1 + k + length]
        right = samples[2 * HALF_TAPS - k : 2 * HALF_TAPS - k + length]
        total = left + right
        even += _EVEN[k] * total
        half += _HALF[k] * total
        odd += _ODD[k] * (left - right)
    return np.maximum(np.abs(half), np.abs(even) + np.abs(odd))
