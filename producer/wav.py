"""Writes WAV files while the audio arrives, to pipes as well."""

import struct
from types import TracebackType
from typing import BinaryIO, Self

from voicefleet.schemas.audio import BYTES_PER_SAMPLE, CHANNELS

UNKNOWN = 0xFFFFFFFF
"""The size of a file whose end is not known yet: players then read to its end."""


def header(sample_rate: int, size: int = UNKNOWN) -> bytes:
    """The WAV header of ``size`` bytes of mono 16-bit PCM at ``sample_rate`` Hz."""
    riff = UNKNOWN if size > UNKNOWN - 36 else size + 36
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", riff, b"WAVE", b"fmt ", 16, 1, CHANNELS),
        *(sample_rate, sample_rate * BYTES_PER_SAMPLE, BYTES_PER_SAMPLE, 8 * BYTES_PER_SAMPLE),
        *(b"data", min(size, UNKNOWN)),
    )


class WavWriter:
    """Writes mono 16-bit PCM to a binary file::

        with open("hello.wav", "wb") as file, WavWriter(file, 48000) as wav:
            async for frame in turn:
                wav.write(frame.pcm)

    On close the sizes in the header are set, if the file can seek. Without that, players still
    read the file to its end.
    """

    def __init__(self, file: BinaryIO, sample_rate: int) -> None:
        self._file = file
        self._rate = sample_rate
        self._bytes = 0
        self._start = file.tell() if file.seekable() else None
        self._file.write(header(sample_rate))

    @property
    def seconds(self) -> float:
        """Length of the audio written so far."""
        return self._bytes / BYTES_PER_SAMPLE / self._rate

    def write(self, pcm: bytes) -> None:
        """Append samples: signed 16-bit little-endian."""
        self._file.write(pcm)
        self._bytes += len(pcm)

    def close(self) -> None:
        """Set the sizes in the header. The file itself stays open."""
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
