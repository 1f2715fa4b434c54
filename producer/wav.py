"""WAV files that are written while audio comes, also to where one cannot seek."""

import struct
from types import TracebackType
from typing import BinaryIO, Self

UNKNOWN = 0xFFFFFFFF
"""The sizes of a file whose end is not known yet, as players of streams understand it."""


def header(sample_rate: int, size: int = UNKNOWN) -> bytes:
    """What stands before ``size`` bytes of mono 16-bit PCM."""
    riff = UNKNOWN if size > UNKNOWN - 36 else size + 36
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", riff, b"WAVE", b"fmt ", 16, 1, 1),
        *(sample_rate, sample_rate * 2, 2, 16, b"data", min(size, UNKNOWN)),
    )


class WavWriter:
    """Mono 16-bit PCM. Sizes in the header are fixed on close, where the file can seek.

    A writer that is killed leaves a file that players read to its end.
    """

    def __init__(self, file: BinaryIO, sample_rate: int) -> None:
        self._file = file
        self._rate = sample_rate
        self._bytes = 0
        self._start = file.tell() if file.seekable() else None
        self._file.write(header(sample_rate))

    @property
    def seconds(self) -> float:
        """Audio written so far."""
        return self._bytes / 2 / self._rate

    def write(self, pcm: bytes) -> None:
        """Append samples: signed 16-bit little-endian."""
        self._file.write(pcm)
        self._bytes += len(pcm)

    def close(self) -> None:
        """Fix the header. The file itself stays open; it is its owner's."""
        if self._start is not None:
            self._file.seek(self._start)
            self._file.write(header(self._rate, self._bytes))
            self._file.seek(0, 2)
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
