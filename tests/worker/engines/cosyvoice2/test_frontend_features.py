"""Spectrograms of a recording: equal to those of matcha, Whisper and torchaudio."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.worker.engines.cosyvoice2.recordings import speechlike
from voicefleet.worker.engines.cosyvoice2.voices import features

TOLERANCE = 1e-5


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.dtype == np.float32 and found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def matcha_audio() -> Any:
    """``matcha.utils.audio`` alone: its package would drag a training framework in."""
    pytest.importorskip("librosa", reason="needs the parity group")
    matcha = pytest.importorskip("matcha", reason="needs the parity group")
    path = Path(matcha.__path__[0]) / "utils" / "audio.py"
    spec = importlib.util.spec_from_file_location("matcha_audio", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seconds", [3.0, 3.3717, 0.1])
def test_mel_equals_matchas(seconds: float) -> None:
    torch = pytest.importorskip("torch", reason="needs the parity group")
    samples = speechlike(seconds, 24_000)
    expected = matcha_audio().mel_spectrogram(
        torch.from_numpy(samples)[None], 1920, 80, 24_000, 480, 1920, 0, 8000, center=False
    )
    found = features.speech_mel(samples)
    assert found.shape == (len(samples) // 480, 80)
    assert difference(found, expected[0].T.numpy()) <= TOLERANCE


@pytest.mark.parametrize("seconds", [3.0, 3.3717])
def test_log_mel_equals_whispers(seconds: float) -> None:
    """Against Whisper's formula, written with torch's STFT and librosa's filters."""
    torch = pytest.importorskip("torch", reason="needs the parity group")
    librosa = pytest.importorskip("librosa", reason="needs the parity group")
    samples = speechlike(seconds, 16_000)
    window = torch.hann_window(400)
    stft = torch.stft(torch.from_numpy(samples), 400, 160, window=window, return_complex=True)
    filters = torch.from_numpy(librosa.filters.mel(sr=16_000, n_fft=400, n_mels=128))
    decades = torch.clamp(filters @ stft[:, :-1].abs() ** 2, min=1e-10).log10()
    expected = (torch.maximum(decades, decades.max() - 8.0) + 4.0) / 4.0
    found = features.whisper_log_mel(samples)
    assert found.shape == (128, len(samples) // 160)
    assert difference(found, expected.numpy()) <= TOLERANCE


@pytest.mark.parametrize("seconds", [3.0, 3.3717, 0.025])
def test_fbank_equals_kaldis(seconds: float) -> None:
    torch = pytest.importorskip("torch", reason="needs the parity group")
    kaldi = pytest.importorskip(
        "torchaudio.compliance.kaldi", reason="needs the parity group", exc_type=ImportError
    )
    samples = speechlike(seconds, 16_000)
    expected = kaldi.fbank(
        torch.from_numpy(samples)[None], num_mel_bins=80, dither=0, sample_frequency=16_000
    )
    found = features.kaldi_fbank(samples)
    # Compared with the mean put back: for one frame, nothing would be left to compare.
    level = expected.mean(dim=0).numpy()
    assert difference(found + level, expected.numpy()) <= TOLERANCE
    assert np.allclose(found.mean(axis=0), 0, atol=1e-5)


def test_silence_has_a_floor() -> None:
    silence = np.zeros(24_000, dtype=np.float32)
    # Magnitudes are never below 3e-5: the root of the 1e-9 that is added to their square.
    assert np.isfinite(features.speech_mel(silence)).all()
    assert np.allclose(features.whisper_log_mel(silence), -1.5)
    assert np.allclose(features.kaldi_fbank(silence), 0.0)
