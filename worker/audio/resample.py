"""One turn's sample-rate conversion."""

import numpy as np
import soxr
from numpy.typing import NDArray

Signal = NDArray[np.float64]

SETTLING_MS = 200
"""After a ``skip``, outputs this much later than its end are those of an undisturbed stream.

Measured with soxr 1.1 over all pairs of rates the fleet knows: at most 160 ms (22 050 to 8000 Hz),
which is soxr's longest internal block; the filter itself spans less than 20 ms.
"""

_SKIP_BLOCK_S = 1


class StreamResampler:
    """A soxr stream at its highest quality, float64 in and out, equal to one-shot conversion.

    VHQ computes in double precision, so processors that round differently still agree once the
    result is 16 bit; soxr's lower qualities compute in single.
    """

    def __init__(self, native_rate: int, sample_rate: int) -> None:
        self._rate = native_rate
        self._stream = (
            None
            if native_rate == sample_rate
            else soxr.ResampleStream(native_rate, sample_rate, 1, dtype="float64", quality="VHQ")
        )

    def push(self, samples: Signal) -> Signal:
        """Take float64 ``[n]`` at the native rate; return what is ready at the output rate."""
        if self._stream is None or not len(samples):
            return samples
        return self._stream.resample_chunk(samples)

    def skip(self, count: int) -> int:
        """Begin ``count`` native samples into the signal, with silence before them.

        The silence is really fed: soxr works in blocks, and its result depends slightly
        (2e-10 from 16 000 to 8000 Hz) on where a block begins. So blocks begin here where they
        begin in a stream that was fed from the signal's start. Costs 3 us for 20 ms skipped.

        Returns:
            How many output samples are skipped; all of them would have been silent.
        """
        skipped = 0
        silence = np.zeros(_SKIP_BLOCK_S * self._rate)
        for begin in range(0, count, len(silence)):
            skipped += len(self.push(silence[: count - begin]))
        return skipped

    def finish(self) -> Signal:
        """Return what the stream still holds. The signal ends here."""
        if self._stream is None:
            return np.zeros(0)
        return self._stream.resample_chunk(np.zeros(0), last=True)
