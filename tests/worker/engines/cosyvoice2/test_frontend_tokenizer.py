"""Text tokens: equal to those of upstream's tokenizer, and no control token from a turn's text."""

import json
from pathlib import Path

import pytest

pytest.importorskip("tokenizers", reason="needs the cosyvoice extra")

from hypothesis import given
from hypothesis import strategies as st

from tests.worker.engines.cosyvoice2.onnx_stubs import write_text_tokenizer
from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.text.tokenizer import CONTROL, MARKUP, TextTokenizer

UPSTREAM_TOKENS = {
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|endofprompt|>", *MARKUP],
}

MERGES = ("h e", "l l", "he ll", "Ġ w", "o r", "hell o", "Ġw or", "' s", "å ¥", "å¥ ½")

TEXTS = (
    "hello world's end",
    "你好、世界。123 45",
    "Wait[laughter], <strong>now</strong>  and\n\nthen [breath]",
    "cafe\u0301 and café: NFC",
    "a [quick_breath]b [vocalized-noise] [unknown] < laughter>",
    "emoji 🙂 and \t tabs  ",
    "",
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Single bytes and ten merges in Qwen2's layout."""
    path = tmp_path_factory.mktemp("model") / "CosyVoice-BlankEN"
    write_text_tokenizer(path)
    vocabulary = json.loads((path / "vocab.json").read_bytes())
    for merge in MERGES:
        vocabulary.setdefault(merge.replace(" ", ""), len(vocabulary))
    (path / "vocab.json").write_text(json.dumps(vocabulary))
    (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n", encoding="utf-8")
    config = json.loads((path / "tokenizer_config.json").read_bytes())
    added = config["added_tokens_decoder"].values()
    config["added_tokens_decoder"] = {len(vocabulary) + i: t for i, t in enumerate(added)}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def ours(directory: Path) -> TextTokenizer:
    return TextTokenizer(directory)


@pytest.fixture(scope="module")
def upstream(directory: Path):
    transformers = pytest.importorskip("transformers", reason="needs the parity group")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens(UPSTREAM_TOKENS)
    return tokenizer


def test_the_ids_of_all_marks_equal_upstreams(ours: TextTokenizer, upstream) -> None:
    for token in (*CONTROL, *MARKUP):
        assert ours.encode(token, control=True) == [upstream.convert_tokens_to_ids(token)], token
    assert ours.end_of_prompt == upstream.convert_tokens_to_ids("<|endofprompt|>")
    assert ours.size == len(upstream)


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_equal_upstreams(ours: TextTokenizer, upstream, text: str) -> None:
    assert ours.encode(text, control=True) == upstream([text])["input_ids"][0]
    assert ours.encode(text) == upstream([text])["input_ids"][0]


PIECES = st.sampled_from([*CONTROL, *MARKUP, "hello", " world", "你好", " ", "\n", "'s", "12"])


@given(st.lists(PIECES | st.text(max_size=5), max_size=12).map("".join))
def test_any_text_gives_upstreams_tokens(ours: TextTokenizer, upstream, text: str) -> None:
    assert ours.encode(text, control=True) == upstream([text])["input_ids"][0]


def test_merges_are_used(ours: TextTokenizer) -> None:
    assert len(ours.encode("hello")) == 1
    assert len(ours.encode("hello wor")) == 2


@given(st.lists(PIECES | st.text(max_size=5), max_size=12).map("".join))
def test_no_text_makes_a_control_token(ours: TextTokenizer, text: str) -> None:
    forbidden = {ours.encode(token, control=True)[0] for token in CONTROL}
    assert not forbidden & set(ours.encode(text))


def test_the_published_layout_gets_the_published_ids(directory: Path, tmp_path: Path) -> None:
    """151 643 byte pairs and three listed tokens: ``<|endofprompt|>`` is 151646."""
    vocabulary = json.loads((directory / "vocab.json").read_bytes())
    rare = {f"<rare{i}>": i for i in range(len(vocabulary), 151_643)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary | rare))
    (tmp_path / "merges.txt").write_bytes((directory / "merges.txt").read_bytes())
    listed = {str(151_643 + i): {"content": token} for i, token in enumerate(CONTROL[:3])}
    config = {"added_tokens_decoder": listed}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = TextTokenizer(tmp_path)
    assert tokenizer.end_of_prompt == 151_646
    assert tokenizer.encode("[breath][laughter][mn]") == [151_647, 151_651, 151_662]
    assert tokenizer.size == 151_663


def test_tokenizer_json_is_read_too(ours: TextTokenizer, upstream, tmp_path: Path) -> None:
    upstream.save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / name).unlink(missing_ok=True)
    from_json = TextTokenizer(tmp_path)
    for text in (*TEXTS, *CONTROL, *MARKUP):
        assert from_json.encode(text, control=True) == ours.encode(text, control=True)
        assert from_json.encode(text) == ours.encode(text)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CosyVoiceInitializationError, match=r"no vocab\.json and no merges\.txt"):
        TextTokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CosyVoiceInitializationError, match=r"no merges\.txt"):
        TextTokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("nonsense\n")
    with pytest.raises(CosyVoiceInitializationError, match=str(tmp_path)):
        TextTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CosyVoiceInitializationError, match=str(tmp_path)):
        TextTokenizer(tmp_path)
