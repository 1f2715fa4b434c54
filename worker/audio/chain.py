"""Turns an engine's chunks into the frames that are published.

gain -> resampler -> limiter -> 16 bit -> frames of 20 ms. The limiter follows the resampler because
resampling moves peaks, and the ceiling holds for what the listener gets.
"""

from collections import deque

import msgspec
import numpy as np
from numpy.typing import NDArray

from voicefleet.schemas.audio import BYTES_PER_SAMPLE, bytes_per_frame, samples_per_frame
from voicefleet.worker.audio.limiter import TruePeakLimiter
from voicefleet.worker.audio.resample import StreamResampler
from voicefleet.worker.audio.resume import ResumePoint
from voicefleet.worker.engines.protocol import Chunk, EngineError, Segment

DEFAULT_CEILING_DBTP = -1.0

_FULL_SCALE = 32768.0


class SegmentStart(msgspec.Struct, frozen=True):
    """``segment`` begins at sample ``native`` of the turn's audio, at the engine's native rate.

    ``resumable``: the turn can be resumed there.
    """

    segment: Segment
    native: int
    resumable: bool = True

    @property
    def resume_point(self) -> ResumePoint:
        """The start of the segment as a resume point."""
        return ResumePoint(self.segment.index, self.segment.start, self.native)


class Frame(msgspec.Struct, frozen=True):
    """Frame number ``n`` (from 1) of a turn: 20 ms of 16-bit little-endian mono PCM.

    ``marks`` are the segments that begin in it.
    """

    n: int
    pcm: bytes
    marks: tuple[SegmentStart, ...] = ()


class AudioChain:
    """Turns one turn's native-rate audio into frames.

    Frames depend on the samples alone, to the last bit, not on how they are split into chunks. To
    resume a turn in the middle, pass ``start`` (from ``resume_point``) and ``first_frame``, and
    push the engine's audio from that segment on: the frames from ``first_frame`` on equal those of
    the uninterrupted turn; earlier ones are left out.
    """

    def __init__(
        self,
        native_rate: int,
        sample_rate: int,
        *,
        gain: float = 1.0,
        ceiling_dbtp: float = DEFAULT_CEILING_DBTP,
        start: ResumePoint | None = None,
        first_frame: int = 1,
    ) -> None:
        self._native_rate = native_rate
        self._sample_rate = sample_rate
        self._gain = gain
        self._resampler = StreamResampler(native_rate, sample_rate)
        self._limiter = TruePeakLimiter(sample_rate, ceiling_dbtp)
        self._samples_per_frame = samples_per_frame(sample_rate)
        self._first_frame = first_frame
        self._native = start.native if start else 0
        skipped = self._resampler.skip(self._native)
        self._next_frame = skipped // self._samples_per_frame + 1
        self._pcm = bytes(skipped % self._samples_per_frame * BYTES_PER_SAMPLE)
        self._marks: deque[tuple[int, SegmentStart]] = deque()

    def push(self, chunk: Chunk) -> list[Frame]:
        """Add a chunk; return the frames that are complete.

        Raises:
            EngineError: The chunk has NaN or infinity, which would spread through the filters.
        """
        for mark in chunk.marks:
            native = self._native + mark.offset
            begin = SegmentStart(mark.segment, native, mark.resumable)
            self._marks.append((self._frame_at(begin.native), begin))
        self._native += len(chunk.samples)
        if not np.isfinite(np.dot(chunk.samples, chunk.samples)):
            raise EngineError("the engine made samples that are not finite numbers")
        amplified = np.multiply(chunk.samples, self._gain, dtype=np.float64)
        self._append(self._limiter.push(self._resampler.push(amplified)))
        return self._frames()

    def finish(self) -> list[Frame]:
        """Return the remaining frames. The last one is padded with silence."""
        self._append(self._limiter.push(self._resampler.finish()))
        self._append(self._limiter.finish())
        size = bytes_per_frame(self._sample_rate)
        self._pcm += bytes(-len(self._pcm) % size)
        # A segment without audio at the very end gets the last frame, which the limiter's
        # look-ahead has withheld until now.
        last = self._next_frame + len(self._pcm) // size - 1
        self._marks = deque((min(frame, last), begin) for frame, begin in self._marks)
        return self._frames()

    def _frame_at(self, native: int) -> int:
        """The number of the frame that contains native sample ``native``."""
        return native * self._sample_rate // (self._native_rate * self._samples_per_frame) + 1

    def _append(self, samples: NDArray[np.float64]) -> None:
        """Append samples as 16 bit, rounded to nearest (halves to even), without dither."""
        scaled = np.rint(samples * _FULL_SCALE)
        np.clip(scaled, -_FULL_SCALE, _FULL_SCALE - 1.0, out=scaled)
        self._pcm += scaled.astype("<i2").tobytes()

    def _frames(self) -> list[Frame]:
        """Remove the complete frames from the buffer; return those from ``first_frame`` on."""
        size = bytes_per_frame(self._sample_rate)
        complete = len(self._pcm) // size
        frames: list[Frame] = []
        for i in range(complete):
            n = self._next_frame + i
            marks = self._marks_in(n)
            if n >= self._first_frame:
                frames.append(Frame(n, self._pcm[i * size : (i + 1) * size], marks))
        self._next_frame += complete
        self._pcm = self._pcm[complete * size :]
        return frames

    def _marks_in(self, n: int) -> tuple[SegmentStart, ...]:
        """Remove and return the marks of frame ``n``."""
        marks: list[SegmentStart] = []
        while self._marks and self._marks[0][0] <= n:
            marks.append(self._marks.popleft()[1])
        return tuple(marks)
