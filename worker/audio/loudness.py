"""Measures integrated loudness and true peak of a whole signal.

A voice is measured once, when its model is loaded; its turns then get one constant gain.
"""

import math
from typing import Protocol, cast

import numpy as np
import pyloudnorm  # pyright: ignore[reportMissingTypeStubs]
import soxr
from numpy.typing import NDArray

from voicefleet.worker.audio.level import decibels, linear
from voicefleet.worker.audio.limiter import limited

Signal = NDArray[np.floating]
"""Mono audio, shape ``[n]``, full scale at 1."""

GATING_BLOCK_S = 0.4
"""The shortest signal that BS.1770 can measure: one gating block."""

TRUE_PEAK_OVERSAMPLING = 4
"""BS.1770-5 annex 2 asks for at least 192 kHz of a 48 kHz signal."""


MAX_MAKEUP_DB = 3.0
"""The most gain added for loudness lost in the limiter. More would flatten peaks audibly."""

_MAKEUP_ROUNDS = 4
"""A decibel of gain before a limiter adds about 0.8 LU; four rounds converge to within 0.01."""


class _Meter(Protocol):
    def integrated_loudness(self, data: Signal) -> float: ...


def integrated_loudness(samples: Signal, rate: int) -> float:
    """Gated loudness by ITU-R BS.1770-4 in LUFS; ``-inf`` for silence or less than 400 ms."""
    if len(samples) < GATING_BLOCK_S * rate or not np.any(samples):
        return -math.inf
    meter = cast("_Meter", pyloudnorm.Meter(rate))
    return float(meter.integrated_loudness(np.asarray(samples, dtype=np.float64)))


def gain_for(
    samples: Signal, rate: int, target_lufs: float, ceiling_dbtp: float | None = None
) -> float:
    """The linear gain that brings ``samples`` to ``target_lufs``.

    It is rounded to 0.01 dB, so that all workers give a voice the same gain, however their
    processors round. Signals that cannot be measured get a gain of 1.

    With ``ceiling_dbtp`` the target holds after a limiter at that ceiling: a voice with high peaks
    loses loudness there (0.8 LU for piper-en-joe), and gets up to ``MAX_MAKEUP_DB`` more gain.
    """
    loudness = integrated_loudness(samples, rate)
    if not math.isfinite(loudness):
        return 1.0
    plain_db = gain_db = round(target_lufs - loudness, 2)
    if ceiling_dbtp is None:
        return linear(gain_db)
    for _ in range(_MAKEUP_ROUNDS):
        published = limited(samples * linear(gain_db), rate, ceiling_dbtp)
        loss = target_lufs - integrated_loudness(published, rate)
        gain_db = round(min(gain_db + loss, plain_db + MAX_MAKEUP_DB), 2)
    return linear(gain_db)


def true_peak_dbtp(samples: Signal, rate: int) -> float:
    """The highest magnitude on and between the samples, in dB relative to full scale."""
    if not np.any(samples):
        return -math.inf
    # Padding with silence, so that peaks at the very ends are interpolated too.
    padded = np.pad(np.asarray(samples, dtype=np.float64), rate // 50)
    oversampled = soxr.resample(padded, rate, TRUE_PEAK_OVERSAMPLING * rate, quality="VHQ")
    return decibels(float(np.max(np.abs(oversampled))))
