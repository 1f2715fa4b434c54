"""Normalisation: what goes, what stays."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicefleet.worker.text.normalise import normalise, speakable

CASES = [
    ("plain text.", "plain text."),
    ("  a \t b\r\n\n c ", "a b c"),
    ("cafe\u0301", "café"),
    ("zero\u200bwidth \u202eand\u202c so\u00adft \ufeffmarks", "zerowidth and soft marks"),
    ("bell\x07 and null\x00", "bell and null"),
    ("Great! 🎉🎉 Let's go 👩‍👩‍👧 now", "Great! Let's go now"),
    ("flag 🇩🇪, heart ❤️, key 1️⃣", "flag , heart , key 1"),
    ("**bold**, *thin*, __strong__, _soft_, ~~gone~~", "bold, thin, strong, soft, gone"),
    ("run `make test` now", "run make test now"),
    ("snake_case, 5*3, 5 * 3, C#, #1", "snake_case, 5*3, 5 * 3, C#, #1"),
    ("# Title", "Title"),
    ("### Deep title", "Deep title"),
    ("> quoted", "quoted"),
    ("- one\n* two\n• three\n+ four", "one two three four"),
    ("1. first", "1. first"),
    ("-5 degrees", "-5 degrees"),
    ("---", ""),
    ("above\n---\nbelow", "above below"),
    ("21 °C, 5 €, 100 % ½ ① ❷", "21 °C, 5 €, 100 % ½ ① ❷"),
    ("你好，世界。", "你好，世界。"),  # noqa: RUF001
    ("", ""),
]


@pytest.mark.parametrize(("raw", "spoken"), CASES)
def test_cases(raw: str, spoken: str):
    assert normalise(raw) == spoken


@given(st.text())
def test_no_letter_or_digit_is_lost(text: str):
    def kept(s: str) -> list[str]:
        return [char for char in unicodedata.normalize("NFC", s) if char.isalnum()]

    invisible = {"Cc", "Cf", "Cs", "Co"}
    visible = "".join(c for c in text if unicodedata.category(c) not in invisible or c.isspace())
    assert unicodedata.normalize("NFD", "".join(kept(normalise(text)))) == unicodedata.normalize(
        "NFD", "".join(kept(visible))
    )


@given(st.text(alphabet=st.sampled_from("ab *_`~#->•\n\t\u200b🎉é\u0301.")))
def test_the_result_is_one_clean_line(text: str):
    result = normalise(text)
    assert result == " ".join(result.split())
    assert unicodedata.is_normalized("NFC", result)
    assert not {"`", "\u200b", "🎉"} & set(result)


@pytest.mark.parametrize("text", ["a", "7", "½", "é", "你", "ش", "!?x"])
def test_speakable(text: str):
    assert speakable(text)


@pytest.mark.parametrize("text", ["", " \n", "...", "?!", "🎉", "— * —", "。！", "\u200b"])  # noqa: RUF001
def test_not_speakable(text: str):
    assert not speakable(text)
