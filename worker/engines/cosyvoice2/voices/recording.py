"""Reference recordings: soundfile decodes them, torchaudio resamples them where it is installed.

Upstream's ``load_wav`` does the same: ``torchaudio.load(path, backend="soundfile")``, then
``torchaudio.transforms.Resample``. Since version 2.9 ``torchaudio.load`` decodes with TorchCodec
and FFmpeg alone, so soundfile is called directly here. Without torchaudio, soxr resamples: the
samples then differ by less than 0.5 % (RMS).
"""

from functools import cache
from importlib import import_module
from math import gcd
from pathlib import Path
from typing import Any, cast

import numpy as np
import soxr
import structlog
from numpy.typing import NDArray

from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceError, CosyVoiceInitializationError

F32 = NDArray[np.float32]

LONGEST_S = 30.0
"""The speech tokenizer was trained on recordings of up to 30 s."""

READ_S = 120.0
"""A longer file is refused before it is decoded."""

LARGEST_KERNEL = 2**20
"""Torchaudio builds one filter for each output phase: about ``rate / gcd * wanted / gcd`` taps in
all, 12 GB at 191 999 Hz. More taps than this are left to soxr; common rates need 0.1 % to 7 %."""

log = structlog.get_logger()


class RecordingError(CosyVoiceError):
    """A reference recording cannot be used. The message names what is wrong with it."""


def read_recording(path: Path) -> tuple[F32, int]:
    """Decode an audio file (WAV, FLAC, OGG or MP3): float32 ``[n, channels]`` and its rate in Hz.

    Raises:
        RecordingError: There is no such file, it is not audio, or is longer than ``READ_S``.
        CosyVoiceInitializationError: The ``soundfile`` package is not installed.
    """
    try:
        import soundfile  # noqa: PLC0415  (the extra)
    except ImportError:
        raise CosyVoiceInitializationError("reading audio needs the soundfile package") from None
    if not path.is_file():
        raise RecordingError(f"recording: there is no file {path}")
    try:
        with soundfile.SoundFile(path) as file:
            rate = int(file.samplerate)
            if file.frames > READ_S * rate:
                raise RecordingError(
                    f"recording: {file.frames / rate:.0f} s long; {LONGEST_S:.0f} s are the most"
                )
            return cast("F32", file.read(dtype="float32", always_2d=True)), rate
    except soundfile.SoundFileError:
        raise RecordingError(f"recording: {path} is not audio that can be read") from None


def resample(mono: F32, rate: int, wanted: int) -> F32:
    """Convert float32 ``[n]`` from ``rate`` to ``wanted`` Hz: ``[ceil(n * wanted / rate)]``.

    With torchaudio the samples equal those of ``torchaudio.transforms.Resample(rate, wanted)``.
    """
    if rate == wanted:
        return mono
    divisor = gcd(rate, wanted)
    transforms = _torchaudio_transforms()
    if transforms is None or (rate // divisor) * (wanted // divisor) > LARGEST_KERNEL:
        return soxr.resample(mono, rate, wanted).astype(np.float32)
    import torch  # noqa: PLC0415  (torchaudio has imported it)

    with torch.inference_mode():
        samples = torch.from_numpy(np.ascontiguousarray(mono))
        return transforms.Resample(rate, wanted)(samples).numpy()


@cache
def _torchaudio_transforms() -> Any:
    """``torchaudio.transforms``, or None where torchaudio is missing or cannot be imported."""
    try:
        return import_module("torchaudio.transforms")
    except ModuleNotFoundError:
        return None
    except (ImportError, OSError, RuntimeError) as error:  # its library is built for another torch
        log.warning("torchaudio_unusable", error=f"{error!s:.200}", resampler="soxr")
        return None
