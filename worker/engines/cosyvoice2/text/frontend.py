"""Turns a segment's text into utterances of token ids.

The rules are upstream's: numbers and signs become words, and a long text is cut at sentence ends
into pieces of 60 to 80 tokens (characters, if it is Chinese).
"""

import re
import unicodedata
from collections.abc import Callable
from typing import Literal, Protocol

from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.text import numerals
from voicefleet.worker.engines.cosyvoice2.text.tokenizer import TextTokenizer

Normaliser = Literal["builtin", "wetext", "none"]

LONGEST, SHORTEST, MERGED = 80, 60, 20
"""Sentences are joined to an utterance of up to ``LONGEST``, or more while it has less than
``SHORTEST``; a last one shorter than ``MERGED`` joins the one before. In tokens, or in characters
if the text is Chinese."""

_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_CHINESE_STOPS = "。？！；：、.?!;"  # noqa: RUF001
_STOPS = ".?!;:"
_COMMAS = "，,"  # noqa: RUF001
_CONTROL = re.compile(r"<\|[^<>|]*\|>")
_BLANK_BESIDE_CHINESE = re.compile(r" (?![\x00-\x1f!-\x7f])|(?<![\x00-\x1f!-\x7f]) ")
_LAST_COMMAS = re.compile(r"[，,、]+$")  # noqa: RUF001
_DECIMAL_POINT = re.compile(r"(?<=\d)\.(?=\d)")
_CHINESE_SIGNS = str.maketrans(
    {"\n": "", "²": "平方", "³": "立方", ".": "。"} | dict.fromkeys("（）【】`")  # noqa: RUF001
)


class _Rules(Protocol):
    def normalize(self, text: str) -> str: ...


class TextFrontend:
    """Normalises, splits and tokenises text.

    Args:
        tokenizer: The model's.
        normaliser: ``builtin`` spells English numbers and cleans Chinese punctuation; ``wetext``
            applies that package's rules first; ``none`` leaves the text as it is written.

    Raises:
        CosyVoiceInitializationError: ``wetext`` is asked for and not installed.
    """

    def __init__(self, tokenizer: TextTokenizer, normaliser: Normaliser = "builtin") -> None:
        self._tokenizer = tokenizer
        self._normaliser = normaliser
        self._rules = _wetext() if normaliser == "wetext" else None

    def utterances(self, text: str) -> list[list[int]]:
        """The token ids of each utterance of ``text``. Empty if nothing in it can be spoken."""
        spoken = self.normalise(text)
        chinese = is_chinese(spoken)
        measure = len if chinese else self._count
        pieces = split(spoken, measure, chinese=chinese)
        return [self._tokenizer.encode(piece) for piece in pieces if not is_silent(piece)]

    def piece(self, text: str, *, first: bool) -> list[int]:
        """The token ids of a part of a sentence, the ``first`` one or a later one."""
        spoken = self.normalise(text)
        blank = "" if first or is_chinese(spoken) else " "
        return self._tokenizer.encode(blank + spoken)

    def prompt(self, text: str) -> list[int]:
        """The token ids of a reference recording's transcript, unsplit."""
        return self._tokenizer.encode(self.normalise(text))

    def instruction(self, text: str) -> list[int]:
        """The token ids of an instruction ("speak softly"), with the token that ends it."""
        instruction = _CONTROL.sub("", text).strip()
        return [*self._tokenizer.encode(instruction), self._tokenizer.end_of_prompt]

    def normalise(self, text: str) -> str:
        """``text`` in words, as it is spoken, without control tokens (``<|...|>``)."""
        text = _CONTROL.sub("", text).strip()
        if self._normaliser == "none" or not text:
            return text
        if is_chinese(text):
            return _clean_chinese(self._rules[0].normalize(text) if self._rules else text)
        text = self._rules[1].normalize(text) if self._rules else text
        # A segment may end with a comma, after which the split would append a stop.
        text = _LAST_COMMAS.sub(".", text)
        return numerals.spell(text) if _is_latin(text) else text

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text))


def is_chinese(text: str) -> bool:
    """Whether ``text`` has a Chinese character: upstream then uses Chinese rules for all of it."""
    return _CHINESE.search(text) is not None


def is_silent(text: str) -> bool:
    """Whether ``text`` has nothing to speak: only punctuation, symbols and spaces."""
    return all(char.isspace() or unicodedata.category(char)[0] in "PS" for char in text)


def split(
    text: str,
    measure: Callable[[str], int],
    *,
    chinese: bool,
    longest: int = LONGEST,
    shortest: int = SHORTEST,
    merged: int = MERGED,
    at_commas: bool = False,
) -> list[str]:
    """Split ``text`` at sentence ends, as upstream's ``split_paragraph`` does.

    A missing final stop is added; of several stops in a row the first is kept. Sentences are joined
    while the piece stays within ``longest`` or has not reached ``shortest``, both in units of
    ``measure``; a last piece shorter than ``merged`` joins the one before.
    """
    if not text:
        return []
    stops = (_CHINESE_STOPS if chinese else _STOPS) + (_COMMAS if at_commas else "")
    if text[-1] not in stops:
        text += "。" if chinese else "."
    pieces: list[str] = []
    piece = ""
    for sentence in _sentences(text, stops):
        if measure(piece + sentence) > longest and measure(piece) > shortest:
            pieces.append(piece)
            piece = ""
        piece += sentence
    if piece and pieces and measure(piece) < merged:
        pieces[-1] += piece
    elif piece:
        pieces.append(piece)
    return pieces


def _sentences(text: str, stops: str) -> list[str]:
    """Sentences with their stop and closing quotation mark. ``text`` ends with a stop."""
    found: list[str] = []
    for body, stop, quote in re.findall(rf'([^{stops}]*)([{stops}])(["”]?)', text):
        if body:
            found.append(body + stop + quote)
        elif found:
            found[-1] += quote
    return found


def _clean_chinese(text: str) -> str:
    """Use Chinese punctuation, and remove spaces between Chinese characters."""
    text = _DECIMAL_POINT.sub("点", text)
    text = _BLANK_BESIDE_CHINESE.sub("", text.replace("\n", ""))
    text = text.translate(_CHINESE_SIGNS).replace(" - ", "，").replace("——", " ")  # noqa: RUF001
    return _LAST_COMMAS.sub("。", text)


def _is_latin(text: str) -> bool:
    """Whether all letters are Latin: English rules would harm text in other scripts."""
    return not any(char.isalpha() and ord(char) > 0x24F for char in text)


def _wetext() -> tuple[_Rules, _Rules]:
    """The rules for Chinese and for all other text, set up as in upstream."""
    try:
        from wetext import (  # noqa: PLC0415  # pyright: ignore
            Normalizer,  # pyright: ignore
        )
    except ImportError:
        raise CosyVoiceInitializationError(
            "the wetext normaliser needs its package: pip install wetext"
        ) from None
    return Normalizer(remove_erhua=False), Normalizer()  # pyright: ignore
