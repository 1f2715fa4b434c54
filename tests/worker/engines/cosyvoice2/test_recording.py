"""Recordings: decoding, and the two resamplers, torchaudio's and soxr's."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for package in ("onnx", "onnxruntime", "soundfile"):
    pytest.importorskip(package, reason="needs the cosyvoice extra")

import soundfile
import soxr

from tests.worker.engines.cosyvoice2.onnx_stubs import write_front
from tests.worker.engines.cosyvoice2.recordings import speechlike
from voicefleet.worker.engines.cosyvoice2.voices import features, recording
from voicefleet.worker.engines.cosyvoice2.voices.prompt import PromptReader
from voicefleet.worker.engines.cosyvoice2.voices.recording import (
    RecordingError,
    read_recording,
    resample,
)

TOLERANCE = 0.005
"""RMS of the difference between the resamplers over the RMS of the signal; measured: 0.0031."""

needs_torchaudio = pytest.mark.skipif(
    find_spec("torchaudio") is None or find_spec("torch") is None, reason="needs torchaudio"
)


@pytest.fixture(params=[pytest.param("torchaudio", marks=needs_torchaudio), "soxr"])
def resampler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "soxr":
        monkeypatch.setattr(recording, "_torchaudio_transforms", lambda: None)
    return request.param


@pytest.fixture
def fresh_import() -> Iterator[None]:
    recording._torchaudio_transforms.cache_clear()
    yield
    recording._torchaudio_transforms.cache_clear()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> PromptReader:
    model = tmp_path_factory.mktemp("model")
    write_front(model)
    return PromptReader(model / "campplus.onnx", model / "speech_tokenizer_v2.onnx")


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.dtype == np.float32 and found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_files_are_read(tmp_path: Path) -> None:
    stereo = np.stack([speechlike(3, 44_100), speechlike(3, 44_100, seed=1)], axis=1)
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, stereo, 44_100)
        samples, rate = read_recording(tmp_path / name)
        assert rate == 44_100 and samples.dtype == np.float32
        assert np.allclose(samples, stereo, atol=1e-4)


@needs_torchaudio
@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 44_100, 48_000])
@pytest.mark.parametrize(
    ("suffix", "subtype"), [(".wav", "PCM_16"), (".wav", "FLOAT"), (".flac", "PCM_16")]
)
@pytest.mark.parametrize("channels", [1, 2])
def test_both_resamplers_agree(
    reader: PromptReader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rate: int,
    suffix: str,
    subtype: str,
    channels: int,
) -> None:
    path = tmp_path / f"recording{suffix}"
    voices = [speechlike(3.2, rate, seed=seed) for seed in range(channels)]
    soundfile.write(path, np.stack(voices, axis=1), rate, subtype=subtype)
    samples, read_rate = read_recording(path)
    assert read_rate == rate and samples.shape == (round(3.2 * rate), channels)
    mono = samples.mean(axis=1)
    wanted = (features.WHISPER_RATE, features.MEL_RATE)
    with_torchaudio = [resample(mono, rate, one) for one in wanted]
    prompt = reader.read(samples, rate)
    monkeypatch.setattr(recording, "_torchaudio_transforms", lambda: None)
    for found, one in zip(with_torchaudio, wanted, strict=True):
        assert difference(found, resample(mono, rate, one)) < TOLERANCE
    expected = reader.read(samples, rate)
    assert difference(np.exp(prompt.mel), np.exp(expected.mel)) < TOLERANCE
    assert len(prompt.speech_tokens) == len(expected.speech_tokens)
    assert prompt.seconds == expected.seconds


@needs_torchaudio
@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_with_torchaudio_samples_are_upstreams(rate: int) -> None:
    torch = pytest.importorskip("torch")
    transforms: Any = pytest.importorskip("torchaudio.transforms", exc_type=ImportError)
    mono = speechlike(3, rate)
    expected = transforms.Resample(orig_freq=rate, new_freq=16_000)(torch.from_numpy(mono)[None])
    assert np.array_equal(resample(mono, rate, 16_000), expected[0].numpy())


def test_rates_that_need_a_large_filter_are_left_to_soxr(resampler: str) -> None:
    mono = speechlike(0.1, 44_101)
    expected = soxr.resample(mono, 44_101, 16_000)
    assert np.array_equal(resample(mono, 44_101, 16_000), expected)


@pytest.mark.parametrize("error", [ModuleNotFoundError(), OSError("libcudart.so.13: missing")])
@pytest.mark.usefixtures("fresh_import")
def test_without_a_usable_torchaudio_soxr_resamples(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(name: str) -> Any:
        raise error

    monkeypatch.setattr(recording, "import_module", fail)
    mono = speechlike(0.5, 48_000)
    assert np.array_equal(resample(mono, 48_000, 16_000), soxr.resample(mono, 48_000, 16_000))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text.wav", "is not audio"),
        ("none.wav", "no file"),
        ("long.wav", "121 s long"),
        ("short.wav", "2.0 s long without the silence around it, not 3 to 30"),
        ("silent.wav", "silent"),
        ("nan.wav", "no numbers"),
        ("slow.wav", "4000 Hz, not 8000 to 192000"),
    ],
)
@pytest.mark.usefixtures("resampler")
def test_bad_recordings_are_named(
    reader: PromptReader, tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "text.wav").write_text("not audio")
    for path, samples, rate in (
        ("long.wav", np.zeros(121 * 8_000), 8_000),
        ("short.wav", speechlike(2, 8_000), 8_000),
        ("silent.wav", np.zeros(4 * 8_000), 8_000),
        ("nan.wav", np.full(4 * 8_000, np.nan), 8_000),
        ("slow.wav", speechlike(4, 4_000), 4_000),
    ):
        soundfile.write(tmp_path / path, samples, rate, subtype="FLOAT")
    with pytest.raises(RecordingError, match=r"^recording: ") as caught:
        reader.read(*read_recording(tmp_path / name))
    assert message in str(caught.value)
