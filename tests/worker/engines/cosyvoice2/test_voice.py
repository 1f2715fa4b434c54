"""Voices: their file, cutting to blocks, mixing, and upstream's own speakers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="needs the cosyvoice extra")

from safetensors.numpy import load_file, save_file

from voicefleet.worker.engines.cosyvoice2.voices.files import load, save, sft_speakers, voices_of
from voicefleet.worker.engines.cosyvoice2.voices.voice import (
    Voice,
    VoiceError,
    aligned,
    mix,
    path_of,
)


def voice(name: str = "anna", tokens: int = 80, seed: int = 0, **changes: Any) -> Voice:
    rng = np.random.Generator(np.random.PCG64(seed))
    codes = rng.integers(0, 6561, tokens)
    fields: dict[str, Any] = {
        "name": name,
        "speaker": rng.standard_normal(192).astype(np.float32),
        "prompt_text": "What is said, «quoted».",
        "speech_tokens": codes,
        "flow_tokens": codes,
        "mel": rng.standard_normal((2 * tokens, 80)).astype(np.float32),
        "gain": 1.25,
        "created": "2026-01-01T00:00:00+00:00",
        "source_rate": 44_100,
        "seconds": 3.25,
    }
    return Voice(**(fields | changes))


def assert_same(a: Voice, b: Voice) -> None:
    for field in Voice.__dataclass_fields__:
        one, other = getattr(a, field), getattr(b, field)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype and np.array_equal(one, other), field
        else:
            assert one == other, field


@pytest.mark.parametrize(
    "changes",
    [{}, {"gain": None}, {"prompt_text_tokens": np.arange(5)}, {"tokens": 0, "prompt_text": ""}],
)
def test_a_voice_survives_its_file(tmp_path: Path, changes: dict[str, Any]) -> None:
    original = voice(**changes)
    path = path_of(tmp_path, "anna")
    save(original, path)
    assert path == tmp_path / "voices" / "anna.safetensors"
    assert_same(load(path), original)
    assert [file.name for file in path.parent.iterdir()] == ["anna.safetensors"]
    assert_same(voices_of(tmp_path)["anna"], original)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = path_of(tmp_path, "anna")
    save(voice(), path)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(voice(seed=1), path)
    monkeypatch.undo()
    assert_same(load(path), voice())
    assert len(list(path.parent.iterdir())) == 1


GOOD = {
    "speaker": np.ones(192, np.float32),
    "speech_tokens": np.zeros(4, np.int64),
    "flow_tokens": np.zeros(4, np.int64),
    "mel": np.zeros((8, 80), np.float32),
}
METADATA = {
    **{"format": "cosyvoice2-voice", "version": "1", "name": "x", "prompt_text": "", "gain": ""},
    **{"created": "", "source_rate": "0", "seconds": "0.0"},
}


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"mel": None}, {}, "misses mel"),
        ({"more": np.zeros(1)}, {}, "has an unknown more"),
        ({"mel": np.zeros((7, 80), np.float32)}, {}, r"mel is float32 \[7, 80\], not .* \[8, 80\]"),
        ({"mel": np.zeros((8, 80))}, {}, "mel is float64"),
        ({"mel": np.full((8, 80), np.inf, np.float32)}, {}, "mel is not finite"),
        ({"speaker": np.ones((1, 192), np.float32)}, {}, r"speaker is float32 \[1, 192\]"),
        ({"speaker": np.zeros(192, np.float32)}, {}, "speaker is all zeros"),
        ({"speech_tokens": np.zeros(4, np.int32)}, {}, "speech_tokens is int32"),
        ({"speech_tokens": np.full(4, 6561)}, {}, "speech_tokens: not all are from 0 to 6560"),
        ({"flow_tokens": np.full(4, -1)}, {}, "flow_tokens: not all are"),
        ({}, {"version": "2"}, "is of version '2', not '1'"),
        ({}, {"format": "else"}, "is not a voice"),
        ({}, {"name": "../x"}, "is no name for a voice"),
        ({}, {"gain": "loud"}, "could not convert"),
        ({}, {"gain": "-1.0"}, "is no gain"),
        ({}, {"gain": "nan"}, "is no gain"),
        ({}, {"seconds": None}, "has no 'seconds'"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    tmp_path: Path, tensors: dict[str, Any], metadata: dict[str, Any], message: str
) -> None:
    path = tmp_path / "x.safetensors"
    save_file(
        {key: value for key, value in {**GOOD, **tensors}.items() if value is not None},
        path,
        {key: value for key, value in {**METADATA, **metadata}.items() if value is not None},
    )
    with pytest.raises(VoiceError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_good_file_is_read(tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / "x.safetensors", METADATA)
    assert load(tmp_path / "x.safetensors").name == "x"


def test_all_that_is_wrong_with_a_pack_is_said(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(voice(name), path_of(tmp_path, name))
    path_of(tmp_path, "c").write_bytes(b"nonsense")
    path_of(tmp_path, "b").rename(path_of(tmp_path, "d"))
    with pytest.raises(VoiceError) as caught:
        voices_of(tmp_path)
    assert "c.safetensors" in str(caught.value) and "holds the voice 'b'" in str(caught.value)
    assert voices_of(tmp_path / "none") == {}
    with pytest.raises(VoiceError, match="there is no"):
        load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b", "a\n", ".a", "-a", "a" * 65, "中文", "a\0", "con trol"]
)
def test_a_name_is_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(VoiceError, match="no name for a voice"):
        path_of(tmp_path, name)


@pytest.mark.parametrize("tokens", [26, 50, 74, 75, 80, 99])
@pytest.mark.parametrize("first", [1, 10, 25])
def test_the_flows_prompt_ends_where_the_first_block_wants_it(tokens: int, first: int) -> None:
    whole = voice(tokens=tokens)
    cut = aligned(whole, first)
    count = len(cut.flow_tokens)
    assert count % 25 == (25 - first) % 25 and tokens - 25 < count <= tokens
    assert np.array_equal(cut.flow_tokens, whole.flow_tokens[-count:])
    assert np.array_equal(cut.mel, whole.mel[-2 * count :])
    assert np.array_equal(cut.speech_tokens, whole.speech_tokens)
    assert_same(aligned(cut, first), cut)


@pytest.mark.parametrize(("tokens", "first"), [(0, 25), (10, 25), (24, 25), (5, 10)])
def test_a_prompt_is_never_cut_away(tokens: int, first: int) -> None:
    assert len(aligned(voice(tokens=tokens), first).flow_tokens) == tokens


@pytest.mark.parametrize("first", [0, 26])
def test_an_alignment_outside_a_block_is_refused(first: int) -> None:
    with pytest.raises(VoiceError, match="between 1 and 25"):
        aligned(voice(), first)


def test_a_mixture_lies_on_the_arc() -> None:
    a, b = voice("a"), voice("b", seed=1, tokens=75)

    def angle(u: np.ndarray, v: np.ndarray) -> float:
        u, v = u.astype(np.float64), v.astype(np.float64)
        return float(np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v)))

    whole = angle(a.speaker, b.speaker)
    for weight in (0.0, 0.2, 0.5, 0.75, 1.0):
        mixed = mix(a, b, weight, "c")
        assert mixed.name == "c" and mixed.gain is None
        assert angle(a.speaker, mixed.speaker) == pytest.approx(weight * whole, abs=1e-3)
        assert angle(b.speaker, mixed.speaker) == pytest.approx((1 - weight) * whole, abs=1e-3)
        heavier = b if weight > 0.5 else a
        assert np.array_equal(mixed.mel, heavier.mel)
        assert np.array_equal(mixed.speech_tokens, heavier.speech_tokens)


def test_what_cannot_be_mixed_is_refused() -> None:
    a = voice("a")
    assert np.allclose(mix(a, a, 0.5, "c").speaker, a.speaker / np.linalg.norm(a.speaker))
    with pytest.raises(VoiceError, match="opposites"):
        mix(a, replace(a, speaker=-a.speaker), 0.5, "c")
    with pytest.raises(VoiceError, match="not between 0 and 1"):
        mix(a, a, 1.1, "c")
    with pytest.raises(VoiceError, match="no name"):
        mix(a, a, 0.5, "../c")


class TestUpstreamsSpeakers:
    @pytest.fixture
    def torch(self) -> Any:
        return pytest.importorskip("torch", reason="needs the cosyvoice extra")

    def test_both_forms_are_read(self, torch: Any, tmp_path: Path) -> None:
        generator = torch.Generator().manual_seed(0)
        embedding = torch.randn(1, 192, generator=generator)
        tokens = torch.randint(0, 6561, (1, 80), generator=generator, dtype=torch.int32)
        mel = torch.randn(1, 160, 80, generator=generator)
        length = torch.tensor([80], dtype=torch.int32)
        added = {
            "prompt_text": torch.tensor([[3, 151_646, 5]], dtype=torch.int32),
            "prompt_text_len": torch.tensor([3], dtype=torch.int32),
            "llm_prompt_speech_token": tokens,
            "llm_prompt_speech_token_len": length,
            "flow_prompt_speech_token": tokens[:, 5:],
            "flow_prompt_speech_token_len": length - 5,
            "prompt_speech_feat": mel[:, 10:],
            "prompt_speech_feat_len": 2 * (length - 5),
            "llm_embedding": embedding,
            "flow_embedding": 2 * embedding,
        }
        path = tmp_path / "spk2info.pt"
        torch.save({"中文女": {"embedding": embedding}, "mine": added}, path)
        speakers = sft_speakers(path)
        assert list(speakers) == ["zh-female", "mine"]
        plain, mine = speakers.values()
        assert np.array_equal(plain.speaker, embedding[0].numpy())
        assert not plain.has_prompt and plain.mel.shape == (0, 80)
        assert mine.has_prompt and mine.prompt_text_tokens is not None
        assert mine.prompt_text_tokens.tolist() == [3, 151_646, 5]
        assert np.array_equal(mine.speaker, 2 * embedding[0].numpy())
        assert np.array_equal(mine.speech_tokens, tokens[0].numpy())
        assert np.array_equal(mine.flow_tokens, tokens[0, 5:].numpy())
        assert np.array_equal(mine.mel, mel[0, 10:].numpy())
        save(mine, path_of(tmp_path, "mine"))
        assert_same(load(path_of(tmp_path, "mine")), mine)

    def test_no_file_is_no_speakers(self, torch: Any, tmp_path: Path) -> None:
        assert sft_speakers(tmp_path / "spk2info.pt") == {}

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([1, 2], "not a mapping of names"),
            ({"a": 1}, "a is not a mapping"),
            ({"a": {}}, "neither an embedding nor a flow_embedding"),
            ({"a": {"embedding": 5}}, "embedding is no tensor"),
            ({"a": {"embedding": [5]}}, "embedding is no tensor"),
            ({"未知": {"embedding": "t"}}, "is no name for a voice"),
        ],
    )
    def test_what_is_wrong_is_said(
        self, torch: Any, tmp_path: Path, content: Any, message: str
    ) -> None:
        if isinstance(content, dict) and content.get("未知"):
            content = {"未知": {"embedding": torch.ones(192)}}
        path = tmp_path / "spk2info.pt"
        torch.save(content, path)
        with pytest.raises(VoiceError, match=message) as caught:
            sft_speakers(path)
        assert str(path) in str(caught.value)

    def test_code_in_the_file_is_not_run(self, torch: Any, tmp_path: Path) -> None:
        marker = tmp_path / "ran"

        class Payload:
            def __reduce__(self) -> Any:
                return (Path.touch, (marker,))

        path = tmp_path / "spk2info.pt"
        torch.save({"a": Payload()}, path)
        with pytest.raises(VoiceError, match="cannot be read"):
            sft_speakers(path)
        assert not marker.exists()


def test_the_file_is_what_it_says(tmp_path: Path) -> None:
    """Anyone with safetensors can read it: names, shapes and types are the format."""
    path = path_of(tmp_path, "anna")
    save(voice(), path)
    tensors = load_file(path)
    assert {name: (str(t.dtype), t.shape) for name, t in tensors.items()} == {
        "speaker": ("float32", (192,)),
        "speech_tokens": ("int64", (80,)),
        "flow_tokens": ("int64", (80,)),
        "mel": ("float32", (160, 80)),
    }
