"""Sample-rate conversion of one turn, streaming."""

import numpy as np
import soxr
from numpy.typing import NDArray

Signal = NDArray[np.float64]

SETTLING_MS = 200
"""From this long after the end of a ``skip``, the output equals that of an uninterrupted stream.

Measured with soxr 1.1 over all pairs of supported rates: at most 160 ms (22 050 to 8000 Hz), which
is soxr's longest internal block; the filter itself spans less than 20 ms.
"""

_SKIP_BLOCK_S = 1


class StreamResampler:
    """A soxr stream of the highest quality, float64 in and out, equal to one-shot conversion.

    VHQ computes in double precision, so that processors that round differently agree once the
    result is 16 bit; soxr's lower qualities compute in single precision.
    """

    def __init__(self, native_rate: int, sample_rate: int) -> None:
        self._rate = native_rate
        self._stream = (
            None
            if native_rate == sample_rate
            else soxr.ResampleStream(native_rate, sample_rate, 1, dtype="float64", quality="VHQ")
        )

    def push(self, samples: Signal) -> Signal:
        """Add float64 ``[n]`` at the native rate; return the samples ready at the output rate."""
        if self._stream is None or not len(samples):
            return samples
        return self._stream.resample_chunk(samples)

    def skip(self, count: int) -> int:
        """Start ``count`` native samples into the signal, with silence before.

        The silence is actually fed to soxr, which works in blocks: its output depends slightly
        (2e-10 from 16 000 to 8000 Hz) on where a block begins, so blocks must begin where they do
        in a stream from the signal's start. Costs 3 us for each 20 ms skipped.

        Returns:
            The number of output samples skipped.
        """
        skipped = 0
        silence = np.zeros(_SKIP_BLOCK_S * self._rate)
        for begin in range(0, count, len(silence)):
            skipped += len(self.push(silence[: count - begin]))
        return skipped

    def finish(self) -> Signal:
        """End the signal; return the remaining samples."""
        if self._stream is None:
            return np.zeros(0)
        return self._stream.resample_chunk(np.zeros(0), last=True)
