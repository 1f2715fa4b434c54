"""Finds places to cut a sentence that is longer than a segment may be."""

import re
import unicodedata

from voicefleet.worker.text.sentences import CLOSERS

_CLAUSE_END = re.compile(
    rf"(?:[,;:!?…)\]]|(?<=\s)[–-])[{CLOSERS}]*(?=\s)"  # noqa: RUF001 (dashes on purpose)
    r"|—|[，、；：]|(?=\n)"  # noqa: RUF001
)
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CJK_CHAR = re.compile(f"[{_CJK}]")
_WORD_END = re.compile(rf"(?<=\S)(?=\s)|(?<=[{_CJK}])(?=[{_CJK}])")


def clause_ends(text: str, low: int, high: int) -> list[int]:
    """Offsets in ``[low, high]`` after a comma, colon, dash and the like, ascending."""
    ends = (match.end() for match in _CLAUSE_END.finditer(text, 0, high + 1))
    return [end for end in ends if low <= end <= high]


def last_word_end(text: str, high: int) -> int | None:
    """The greatest offset up to ``high`` at which a word ends. CJK text can be cut anywhere.

    In the upper half, ends of words of up to three letters are skipped: most of these (the, of,
    and; le, der, con) belong to the next word.
    """
    last = None
    previous = 0
    for match in _WORD_END.finditer(text, 0, high + 1):
        end = match.start()
        if last is None or last < high // 2 or not _belongs_to_next(text[previous:end]):
            last = end
        previous = end
    return last


def _belongs_to_next(word: str) -> bool:
    return len(word.strip()) <= 3 and word[-1].isalpha() and not _CJK_CHAR.match(word[-1])


def within_word(text: str, high: int) -> int:
    """An offset up to ``high`` that does not separate a character from its marks and joiners."""
    cut = high
    while cut > 1 and (_joins(text[cut]) or text[cut - 1] == "\u200d"):
        cut -= 1
    return cut if cut > 1 else high


def _joins(char: str) -> bool:
    return unicodedata.category(char) in {"Mn", "Mc", "Me"} or char in "\u200c\u200d"
