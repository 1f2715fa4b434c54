"""Text to token ids: Qwen2's byte-level BPE with the tokens that CosyVoice 2 adds to it.

The vocabulary comes from the checkpoint's ``CosyVoice-BlankEN/``. Ids equal those of upstream's
``AutoTokenizer`` with ``add_special_tokens``; transformers is not needed.
"""

import re
from pathlib import Path
from typing import cast

import msgspec
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError

END_OF_PROMPT = "<|endofprompt|>"
"""Separates an instruction from the text to speak."""

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", END_OF_PROMPT)
"""Tokens that control the model. Only the engine inserts them; in a turn's text they are plain
characters."""

MARKUP = (
    *("[breath]", "<strong>", "</strong>", "[noise]", "[laughter]", "[cough]", "[clucking]"),
    *("[accent]", "[quick_breath]", "<laughter>", "</laughter>", "[hissing]", "[sigh]"),
    *("[vocalized-noise]", "[lipsmack]", "[mn]"),
)
"""Markup that a text may contain: each is one token, and is audible."""

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's pre-tokenisation: contractions, words, digits, signs."""


class _AddedToken(msgspec.Struct, frozen=True):
    content: str
    id: int | None = None


class _TokenizerFile(msgspec.Struct, frozen=True):
    added_tokens: list[_AddedToken] = []


class _TokenizerConfig(msgspec.Struct, frozen=True):
    added_tokens_decoder: dict[str, _AddedToken] = {}


class TextTokenizer:
    """Reads ``tokenizer.json`` in ``directory``, else ``vocab.json`` and ``merges.txt``.

    Raises:
        CosyVoiceInitializationError: Neither exists, or one cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        try:
            self._bpe, added = _read(directory)
        except CosyVoiceInitializationError:
            raise
        except Exception as error:  # the tokenizers library raises bare Exceptions
            raise CosyVoiceInitializationError(f"{directory}: {error}") from None
        # Markup is split off here, not in the library, so that control tokens stay plain text.
        self._bpe.encode_special_tokens = True
        ids = self._bpe.get_vocab(with_added_tokens=False)
        self._ids = added | {token: ids[token] for token in CONTROL if token in ids}
        following = max([*ids.values(), *added.values()]) + 1
        for token in (*CONTROL, *MARKUP):
            if token not in self._ids:
                self._ids[token] = following
                following += 1
        self.size = following
        self._markup = _splitter(MARKUP)
        self._all = _splitter(tuple(self._ids))

    @property
    def end_of_prompt(self) -> int:
        """The id of ``<|endofprompt|>``."""
        return self._ids[END_OF_PROMPT]

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """The tokens of ``text``.

        Markup such as ``[laughter]`` becomes one token. ``<|endofprompt|>``, ``<|im_start|>`` and
        the like are plain characters, so that a text cannot control the model; with ``control``
        they become control tokens, as in upstream.
        """
        ids: list[int] = []
        for piece in (self._all if control else self._markup).split(text):
            if piece in self._ids and (control or piece in MARKUP):
                ids.append(self._ids[piece])
            elif piece:
                ids += self._bpe.encode(piece, add_special_tokens=False).ids
        return ids


def _splitter(tokens: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile(f"({'|'.join(re.escape(token) for token in longest_first)})")


def _read(directory: Path) -> tuple[Tokenizer, dict[str, int]]:
    """The BPE model, and the ids of added tokens by their content."""
    whole = directory / "tokenizer.json"
    if whole.is_file():
        listed = msgspec.json.decode(whole.read_bytes(), type=_TokenizerFile).added_tokens
        bpe = Tokenizer.from_file(str(whole))
        return bpe, {token.content: token.id for token in listed if token.id is not None}
    vocabulary, merges = directory / "vocab.json", directory / "merges.txt"
    missing = [path.name for path in (vocabulary, merges) if not path.is_file()]
    if missing:
        raise CosyVoiceInitializationError(
            f"{directory}: there is no tokenizer.json, and no {' and no '.join(missing)} either"
        )
    ids = msgspec.json.decode(vocabulary.read_bytes(), type=dict[str, int])
    pairs = cast("list[tuple[str, str]]", [tuple(line.split(" ")) for line in _lines(merges)])
    bpe = Tokenizer(models.BPE(vocab=ids, merges=pairs, fuse_unk=False, byte_fallback=False))
    bpe.normalizer = normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]
    bpe.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return bpe, _listed_beside(directory)


def _lines(merges: Path) -> list[str]:
    lines = merges.read_text(encoding="utf-8").split("\n")
    if lines[0].startswith("#version"):
        del lines[0]
    return [line for line in (line.rstrip("\r") for line in lines) if line]


def _listed_beside(directory: Path) -> dict[str, int]:
    """The ids of added tokens from ``tokenizer_config.json`` or ``added_tokens.json``."""
    config, added = directory / "tokenizer_config.json", directory / "added_tokens.json"
    if config.is_file():
        listed = msgspec.json.decode(config.read_bytes(), type=_TokenizerConfig)
        if listed.added_tokens_decoder:
            return {token.content: int(i) for i, token in listed.added_tokens_decoder.items()}
    if added.is_file():
        return msgspec.json.decode(added.read_bytes(), type=dict[str, int])
    return {}
