"""The three spectrograms of a reference recording that the model's networks take.

They take mono float32 samples ``[n]`` in [-1, 1] and equal what upstream computes with matcha,
Whisper and torchaudio (``kaldi.fbank``) to 1e-5. Computed once for each voice, with NumPy in double
precision, so that no tensor library is needed.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

MEL_RATE = 24_000
WHISPER_RATE = KALDI_RATE = 16_000

_SMALLEST = float(np.finfo(np.float32).eps)


def speech_mel(
    samples: F32,
    *,
    rate: int = MEL_RATE,
    fft: int = 1920,
    hop: int = 480,
    bands: int = 80,
    low: float = 0.0,
    high: float = 8000.0,
) -> F32:
    """Log mel magnitudes ``[n // hop, bands]``, in which the flow works.

    The defaults are those of ``feat_extractor`` in the published cosyvoice2.yaml, whose window is
    as long as the FFT. Frame t is centred on sample ``hop * (t + 1/2)``.
    """
    padded = np.pad(samples.astype(np.float64), (fft - hop) // 2, mode="reflect")
    spectrum = np.fft.rfft(_frames(padded, fft, hop) * _hann(fft))
    magnitudes = np.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-9)
    mel = magnitudes @ _slaney_filters(rate, fft, bands, low, high).T
    return np.log(np.maximum(mel, 1e-5)).astype(np.float32)


def whisper_log_mel(samples: F32, bands: int = 128) -> F32:
    """Whisper's log mel powers ``[bands, n // 160]`` of 16 kHz audio: the speech tokenizer's input.

    Values are clipped at 8 decades below the maximum, then shifted and scaled by 4, as in
    ``audio.py`` of openai/whisper.
    """
    fft, hop = 400, 160
    padded = np.pad(samples.astype(np.float64), fft // 2, mode="reflect")
    spectrum = np.fft.rfft(_frames(padded, fft, hop)[:-1] * _hann(fft))
    powers = spectrum.real**2 + spectrum.imag**2
    mel = _slaney_filters(WHISPER_RATE, fft, bands, 0.0, WHISPER_RATE / 2) @ powers.T
    decades = np.log10(np.maximum(mel, 1e-10))
    return ((np.maximum(decades, decades.max() - 8.0) + 4.0) / 4.0).astype(np.float32)


def kaldi_fbank(samples: F32, bands: int = 80) -> F32:
    """Kaldi's log mel powers ``[1 + (n - 400) // 160, bands]`` of 16 kHz audio, without dither.

    The speaker encoder's input: the mean over time is subtracted from each band.
    """
    width, hop, fft = 400, 160, 512
    frames = _frames(samples.astype(np.float64), width, hop)
    frames = frames - frames.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    povey = np.hanning(width) ** 0.85
    spectrum = np.fft.rfft((frames - 0.97 * before) * povey, n=fft)
    powers = spectrum.real**2 + spectrum.imag**2
    logs = np.log(np.maximum(powers @ _kaldi_filters(fft, bands).T, _SMALLEST))
    return (logs - logs.mean(axis=0)).astype(np.float32)


def _frames(samples: F64, width: int, hop: int) -> F64:
    return np.lib.stride_tricks.sliding_window_view(samples, width)[::hop]


def _hann(width: int) -> F64:
    """A periodic Hann window."""
    return np.hanning(width + 1)[:-1]


@cache
def _slaney_filters(rate: int, fft: int, bands: int, low: float, high: float) -> F64:
    """Triangular filters of equal area, evenly spaced on Slaney's mel scale: ``[bands, bins]``."""
    edges = _slaney_hz(np.linspace(_slaney_mel(low), _slaney_mel(high), bands + 2))
    bins = np.linspace(0, rate / 2, fft // 2 + 1)
    return _triangles(edges, bins) * (2.0 / (edges[2:] - edges[:-2]))[:, None]


@cache
def _kaldi_filters(fft: int, bands: int) -> F64:
    """Kaldi's triangular mel filters, 20 Hz to 8 kHz: ``[bands, bins]``, 0 in the last bin."""
    hz = np.arange(fft // 2 + 1) * KALDI_RATE / fft
    low, high = (1127.0 * float(np.log1p(edge / 700.0)) for edge in (20.0, KALDI_RATE / 2))
    filters = _triangles(np.linspace(low, high, bands + 2), 1127.0 * np.log1p(hz / 700.0))
    filters[:, -1] = 0.0
    return filters


def _triangles(edges: F64, at: F64) -> F64:
    """Triangle i rises from ``edges[i]`` to 1 at ``edges[i + 1]`` and falls to ``edges[i + 2]``."""
    steps = np.diff(edges)[:, None]
    rising = (at - edges[:-2, None]) / steps[:-1]
    falling = (edges[2:, None] - at) / steps[1:]
    return np.maximum(0.0, np.minimum(rising, falling))


_LINEAR_HZ = 200 / 3  # Hz for each mel below 1 kHz
_LOG_STEP = np.log(6.4) / 27  # log Hz for each mel above


def _slaney_mel(hz: float) -> float:
    if hz < 1000.0:
        return hz / _LINEAR_HZ
    return 15.0 + float(np.log(hz / 1000.0) / _LOG_STEP)


def _slaney_hz(mel: F64) -> F64:
    return np.where(mel < 15.0, mel * _LINEAR_HZ, 1000.0 * np.exp((mel - 15.0) * _LOG_STEP))
