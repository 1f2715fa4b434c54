"""Reference recordings, as ``voices add`` reads them, up to the networks' input."""

import io
import struct
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np

from verify.fuzz.mutators import spoil
from verify.fuzz.target import Target, ensure
from voicefleet.worker.engines.cosyvoice2.voices import features
from voicefleet.worker.engines.cosyvoice2.voices.prompt import SHORTEST_S, PromptReader
from voicefleet.worker.engines.cosyvoice2.voices.recording import (
    LONGEST_S,
    RecordingError,
    read_recording,
)

_RATES: Final = (0, 1, 7999, 8000, 16000, 44100, 192000, 192001, 2**31 - 1, 2**32 - 1)
_FORMATS: Final = (0, 1, 2, 3, 6, 7, 17, 49, 80, 85, 0xFFFE, 0xFFFF)
_SIZES: Final = (0, 1, 2, 100, 2**31 - 1, 2**31, 2**32 - 1)


def _wav(
    data: bytes,
    *,
    rate: int = 16000,
    channels: int = 1,
    bits: int = 16,
    kind: int = 1,
    claims: int | None = None,
) -> bytes:
    """A WAV file with the given header."""
    align = max(1, channels * bits // 8) % 65536
    fmt = struct.pack("<HHIIHH", kind, channels, rate, rate * align % 2**32, align, bits)
    size = len(data) if claims is None else claims
    body = (
        b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", size) + data
    )
    return b"RIFF" + struct.pack("<I", (len(body) if claims is None else claims) % 2**32) + body


def _sound(seconds: float, rate: int = 8000) -> np.ndarray[Any, Any]:
    rng = np.random.Generator(np.random.PCG64(0))
    return rng.standard_normal(round(seconds * rate)).astype(np.float32) * 0.1


def _encoded(kind: str, seconds: float = 3.2) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, _sound(seconds), 8000, format=kind)
    return buffer.getvalue()


class _Networks(PromptReader):
    """Stands in for the networks: takes their inputs and returns some output."""

    def __init__(self) -> None:
        pass

    def _tokens(self, samples: Any) -> Any:
        mel = features.whisper_log_mel(samples)
        ensure(bool(np.isfinite(mel).all()), "the speech tokenizer's input is not finite")
        return np.zeros(mel.shape[1] // 4, np.int64)

    def _speaker(self, samples: Any) -> Any:
        bank = features.kaldi_fbank(samples)
        ensure(bool(np.isfinite(bank).all()), "the speaker encoder's input is not finite")
        return np.ones(192, np.float32)


def recording(scratch: Path) -> Target:
    """A reference recording, in every container and encoding that is read."""
    path = scratch / "recording"
    pcm = (_sound(3.2) * 32767).astype("<i2").tobytes()
    floats = _sound(3.2)
    floats[1000] = np.nan
    seeds = [
        *(_wav(pcm, rate=8000), _wav(pcm, rate=8000, channels=2), _wav(pcm[:100]), _wav(b"")),
        *(_wav(bytes(60_000), rate=8000), _wav(floats.tobytes(), rate=8000, bits=32, kind=3)),
        *(_wav(_sound(3.2).tobytes(), rate=8000, bits=32, kind=3), _wav(pcm, claims=2**32 - 1)),
        *(_wav(np.full(30_000, 1e38, "<f4").tobytes(), rate=8000, bits=32, kind=3),),
        *(_encoded(kind) for kind in ("FLAC", "OGG", "MP3", "AIFF", "CAF", "AU", "W64", "RF64")),
        b"RIFF", b"", b"ID3\x04\0\0\0\0\0\0", b"not audio at all",
    ]  # fmt: skip
    words = [b"RIFF", b"WAVE", b"fmt ", b"data", b"LIST", b"fact", b"\xff" * 4, b"OggS", b"fLaC"]

    def draw(rng: Random) -> bytes:
        if rng.random() < 0.4:
            return _wav(
                pcm[: rng.choice((0, 1, 2, 1000, len(pcm)))],
                rate=rng.choice(_RATES),
                channels=rng.choice((0, 1, 2, 3, 8, 255, 1024, 65535)),
                bits=rng.choice((0, 1, 4, 8, 12, 16, 24, 32, 64, 65535)),
                kind=rng.choice(_FORMATS),
                claims=rng.choice((None, *_SIZES)),
            )
        return spoil(rng, seeds, words)

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        samples, rate = read_recording(path)
        ensure(samples.nbytes < 2**28, "a recording takes hundreds of MB")
        found = _Networks().read(samples, rate)
        ensure(bool(np.isfinite(found.mel).all()), "mel")
        ensure(SHORTEST_S <= found.seconds <= LONGEST_S, "seconds")

    return Target(draw, feed, (RecordingError,))
