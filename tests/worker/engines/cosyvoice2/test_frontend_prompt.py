"""Recordings: what is read from them, and which are refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

for package in ("onnx", "onnxruntime", "tokenizers", "soundfile"):
    pytest.importorskip(package, reason="needs the cosyvoice extra")

from tests.worker.engines.cosyvoice2.onnx_stubs import write_front, write_speaker_encoder
from tests.worker.engines.cosyvoice2.recordings import speechlike
from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.voices import features
from voicefleet.worker.engines.cosyvoice2.voices.prompt import PromptReader, conditioned
from voicefleet.worker.engines.cosyvoice2.voices.recording import RecordingError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    write_front(directory)
    return directory


@pytest.fixture(scope="module")
def reader(model: Path) -> PromptReader:
    return PromptReader(model / "campplus.onnx", model / "speech_tokenizer_v2.onnx")


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("seconds", [3.0, 3.333, 7.77, 30.0])
def test_tokens_and_frames_cover_the_same_time(reader: PromptReader, seconds: float) -> None:
    prompt = reader.read(speechlike(seconds, 16_000), 16_000, condition=False)
    assert prompt.speech_tokens.dtype == np.int64
    assert prompt.mel.shape == (2 * len(prompt.speech_tokens), 80)
    assert prompt.speaker.shape == (192,) and prompt.speaker.dtype == np.float32
    assert 0 <= seconds - len(prompt.speech_tokens) / 25 <= 0.04 + 1e-6
    assert prompt.seconds == pytest.approx(seconds, abs=1e-3)


def test_unconditioned_it_equals_upstreams_reading(reader: PromptReader, model: Path) -> None:
    """Upstream's steps, with the same networks: no conditioning, features, min of both lengths."""
    import onnxruntime

    high = speechlike(4.321, 24_000)
    mel = reader.read(high, 24_000, condition=False).mel
    assert np.array_equal(mel, features.speech_mel(high)[: len(mel)])
    low = speechlike(4.321, 16_000)
    prompt = reader.read(low, 16_000, condition=False)
    tokenizer = onnxruntime.InferenceSession(model / "speech_tokenizer_v2.onnx")
    log_mel = features.whisper_log_mel(low)[None]
    length = np.array([log_mel.shape[2]], dtype=np.int32)
    (tokens,) = tokenizer.run(None, {"feats": log_mel, "feats_length": length})
    encoder = onnxruntime.InferenceSession(model / "campplus.onnx")
    (speaker,) = encoder.run(None, {"input": features.kaldi_fbank(low)[None]})
    assert np.array_equal(prompt.speech_tokens, tokens[0][: len(prompt.speech_tokens)])
    assert np.array_equal(prompt.speaker, speaker[0])


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_rate_and_channels_give_nearly_the_same(
    reader: PromptReader, rate: int, channels: int
) -> None:
    expected = reader.read(speechlike(5, 24_000), 24_000)
    samples = np.repeat(speechlike(5, rate)[:, None], channels, axis=1)
    prompt = reader.read(samples, rate)
    assert abs(len(prompt.speech_tokens) - len(expected.speech_tokens)) <= 1
    assert cosine(prompt.speaker, expected.speaker) > (0.9 if rate > 16_000 else 0.5)


def test_the_stand_ins_hear_a_difference(reader: PromptReader) -> None:
    one = reader.read(speechlike(5, 16_000), 16_000)
    other = reader.read(speechlike(5, 16_000, seed=1)[::-1].copy(), 16_000)
    assert not np.array_equal(one.speech_tokens, other.speech_tokens)
    assert len(set(one.speech_tokens.tolist())) > 10
    assert cosine(one.speaker, other.speaker) < 0.9999


def test_silence_at_the_ends_is_trimmed() -> None:
    rate = 16_000
    sound = speechlike(4, rate)
    lead, tail = np.zeros(rate, np.float32), np.zeros(2 * rate, np.float32)
    found = conditioned(np.concatenate([lead, sound, tail]), rate)
    assert len(found) / rate == pytest.approx(4 + 0.05 + 0.05, abs=0.011)
    start = int(np.flatnonzero(found)[0])
    assert start / rate == pytest.approx(0.05, abs=0.011)
    assert np.array_equal(found[start : start + len(sound)], sound)


def test_a_pause_follows_what_is_heard(reader: PromptReader) -> None:
    """0.2 s: 5 tokens, 10 frames, the last of them of nothing but silence."""
    bare, closed = (
        reader.read(speechlike(4, 16_000), 16_000, condition=condition)
        for condition in (False, True)
    )
    assert len(closed.speech_tokens) == len(bare.speech_tokens) + 5
    assert np.array_equal(closed.mel[: len(bare.mel) - 4], bare.mel[:-4])
    assert np.ptp(closed.mel[-4:], axis=0).max() < 1e-3
    assert closed.seconds == bare.seconds == 4.0


def test_only_a_high_peak_is_brought_down() -> None:
    assert np.abs(conditioned(speechlike(4, 16_000, peak=1.0), 16_000)).max() == pytest.approx(0.8)
    assert np.abs(conditioned(speechlike(4, 16_000, peak=0.3), 16_000)).max() == pytest.approx(0.3)


def test_what_is_added_never_makes_it_too_long(reader: PromptReader) -> None:
    assert reader.read(speechlike(30, 16_000), 16_000).seconds == 30.0


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (speechlike(2.5, 16_000), 16_000, "2.5 s long without the silence around it, not 3 to 30"),
        (speechlike(31, 16_000), 16_000, "31.0 s long without"),
        (np.zeros(5 * 16_000, np.float32), 16_000, "silent"),
        (np.zeros((0, 2), np.float32), 16_000, "silent"),
        (np.full(5 * 16_000, np.nan, np.float32), 16_000, "no numbers"),
        (speechlike(4, 4_000), 4_000, "4000 Hz, not 8000 to 192000"),
    ],
)
def test_what_cannot_be_used_is_refused(
    reader: PromptReader, samples: np.ndarray, rate: int, message: str
) -> None:
    with pytest.raises(RecordingError, match=r"^recording: ") as caught:
        reader.read(samples, rate)
    assert message in str(caught.value)


def test_networks_that_cannot_be_loaded_are_named(model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nonsense")
    encoder, tokenizer = model / "campplus.onnx", model / "speech_tokenizer_v2.onnx"
    for files in ((broken, tokenizer), (encoder, broken), (tmp_path / "none.onnx", tokenizer)):
        with pytest.raises(CosyVoiceInitializationError, match=r"\.onnx cannot be loaded"):
            PromptReader(*files)
    with pytest.raises(CosyVoiceInitializationError, match=r"takes 1 inputs, not 2"):
        PromptReader(encoder, encoder)


def test_the_gpu_is_refused_where_there_is_none(model: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(CosyVoiceInitializationError, match="onnxruntime-gpu"):
        PromptReader(model / "campplus.onnx", model / "speech_tokenizer_v2.onnx", cuda=True)


def test_stand_ins_are_the_same_each_time(tmp_path: Path, model: Path) -> None:
    write_speaker_encoder(tmp_path / "campplus.onnx")
    assert (tmp_path / "campplus.onnx").read_bytes() == (model / "campplus.onnx").read_bytes()


def test_reading_needs_no_torch() -> None:
    voices = ("prompt", "recording", "voice", "files", "features", "enrol", "speaker")
    modules = [f"voices.{name}" for name in voices] + ["text.frontend", "text.tokenizer"]
    imports = "; ".join(f"import voicefleet.worker.engines.cosyvoice2.{name}" for name in modules)
    code = f"import sys; {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
