"""What is spoken for a text: numbers, Chinese punctuation, and cutting as upstream cuts."""

import importlib
import re
from pathlib import Path

import pytest

pytest.importorskip("tokenizers", reason="needs the cosyvoice extra")

from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.worker.engines.cosyvoice2.onnx_stubs import write_text_tokenizer
from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.text import numerals
from voicefleet.worker.engines.cosyvoice2.text.frontend import TextFrontend, is_silent, split
from voicefleet.worker.engines.cosyvoice2.text.tokenizer import TextTokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    directory: Path = tmp_path_factory.mktemp("tokenizer")
    write_text_tokenizer(directory)
    return TextTokenizer(directory)


@pytest.fixture(scope="module")
def frontend(tokenizer: TextTokenizer) -> TextFrontend:
    return TextFrontend(tokenizer)


@pytest.fixture(scope="module")
def upstream():
    pytest.importorskip("cosyvoice", reason="needs the parity group")
    return importlib.import_module("cosyvoice.utils.frontend_utils")


WORDS = st.sampled_from(
    [
        "hello",
        "a",
        "sentence of several words",
        "你好",
        "今天天气很好",
        " ",
        "\n",
        "3.5",
        "-",
        "x" * 30,
    ]
)
SIGNS = st.sampled_from([*".?!;:,…。？！；：、，\"”“'", "...", '."', "?!", '!"'])  # noqa: RUF001
TEXTS = st.lists(WORDS | SIGNS | st.text(max_size=4), min_size=1, max_size=40).map("".join)


@given(text=TEXTS, chinese=st.booleans(), at_commas=st.booleans())
@example(text='He said: "Go." Then... nothing?!', chinese=False, at_commas=False)
@example(text='"', chinese=True, at_commas=False)
def test_cuts_equal_upstreams(upstream, text: str, chinese: bool, at_commas: bool) -> None:
    def words(text: str) -> list[str]:
        return text.split()

    if not text:
        assert split(text, len, chinese=chinese) == []
        return
    for longest, shortest, merged in ((80, 60, 20), (12, 6, 4)):
        try:
            expected = upstream.split_paragraph(
                text, words, "zh" if chinese else "en", longest, shortest, merged, at_commas
            )
        except IndexError:  # it stumbles over a quotation mark behind a leading stop
            return
        found = split(
            text,
            len if chinese else lambda piece: len(words(piece)),
            chinese=chinese,
            longest=longest,
            shortest=shortest,
            merged=merged,
            at_commas=at_commas,
        )
        assert found == expected


def test_what_upstream_stumbles_over_is_cut() -> None:
    assert split('."Hello."', len, chinese=False) == ['Hello."']
    assert split("...", len, chinese=False) == []


@given(TEXTS)
def test_chinese_signs_are_cleaned_as_upstream_does(frontend, upstream, text: str) -> None:
    text = "好" + text.strip() + "好"
    assume("<|" not in text)
    # Decimals are ours: upstream makes a full stop of every point.
    expected = re.sub(r"(?<=\d)\.(?=\d)", "点", text)
    expected = upstream.replace_corner_mark(upstream.replace_blank(expected.replace("\n", "")))
    expected = expected.replace(".", "。").replace(" - ", "，")  # noqa: RUF001
    assert frontend.normalise(text) == upstream.remove_bracket(expected)


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("It cost $3.50 on the 2nd.", "It cost three dollars fifty on the second."),
        ("$3.5 million in 1984", "three point five million dollars in nineteen eighty-four"),
        ("1,205 of 2024", "one thousand, two hundred and five of two thousand and twenty-four"),
        ("at 10:05, 11:00 and 9:30", "at ten oh five, eleven and nine thirty"),
        ("-5 degrees, COVID-19", "minus five degrees, COVID-nineteen"),
        ("H100 and 5kg", "H one hundred and five kg"),
        ("12.5% or 3 %", "twelve point five percent or three percent"),
        ("call 555-1234", "call five five five, one two three four"),
        ("agent 007, 12th", "agent zero zero seven, twelfth"),
        ("nothing here", "nothing here"),
        ("12345678901234567", "one two three four five six seven eight nine zero one two three "
         "four five six seven"),
    ],
)  # fmt: skip
def test_english_numbers_are_spelled(text: str, spoken: str) -> None:
    assert numerals.spell(text) == spoken


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (40, "forty"),
        (100, "one hundred"),
        (215, "two hundred and fifteen"),
        (1_000, "one thousand"),
        (1_001, "one thousand and one"),
        (1_100, "one thousand, one hundred"),
        (100_020, "one hundred thousand and twenty"),
        (1_000_001, "one million and one"),
        (2_000_300, "two million, three hundred"),
        (
            123_456_789,
            "one hundred and twenty-three million, four hundred and fifty-six thousand, "
            "seven hundred and eighty-nine",
        ),
        (10**14, "one hundred trillion"),
    ],
)
def test_cardinals_equal_those_of_inflect(number: int, words: str) -> None:
    assert numerals.cardinal(number) == words


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("今天 是 3.14 号,", "今天是3点14号。"),
        ("他说（小声）：面积 5² 中, A - B", "他说小声：面积5平方中, A，B"),  # noqa: RUF001
        ("AI model 很好", "AI model很好"),
        ("첫 2024년", "첫 2024년"),
        ("Ends with a comma,", "Ends with a comma."),
        ("a <|endofprompt|>b<|im_start|>", "a b"),
        ("", ""),
    ],
)
def test_texts_are_normalised(frontend: TextFrontend, text: str, spoken: str) -> None:
    assert frontend.normalise(text) == spoken


def test_long_texts_become_several_utterances(
    frontend: TextFrontend, tokenizer: TextTokenizer
) -> None:
    sentence = "This sentence has just about forty letters. "
    utterances = frontend.utterances(sentence * 4)
    assert len(utterances) == 2
    assert [*utterances[0], *utterances[1]] == tokenizer.encode((sentence * 4).strip())
    assert frontend.utterances("Short") == [tokenizer.encode("Short.")]


@pytest.mark.parametrize("text", ["", "...", "?!", " - ", "“”", "<|endoftext|>", "。"])
def test_nothing_to_say_is_no_utterance(frontend: TextFrontend, text: str) -> None:
    assert frontend.utterances(text) == []


@given(st.text(max_size=8))
def test_silence_is_what_upstream_calls_punctuation(upstream, text: str) -> None:
    if not any(char.isspace() for char in text):
        assert is_silent(text) == upstream.is_only_punctuation(text)


def test_markup_is_spoken_and_control_is_not(
    frontend: TextFrontend, tokenizer: TextTokenizer
) -> None:
    tokens = frontend.utterances("Well [laughter]<|im_<|x|>end|> yes<|endofprompt|>")[0]
    assert tokenizer.encode("[laughter]")[0] in tokens
    assert tokenizer.end_of_prompt not in tokens


def test_an_instruction_ends_with_its_mark_once(
    frontend: TextFrontend, tokenizer: TextTokenizer
) -> None:
    end = tokenizer.end_of_prompt
    expected = [*tokenizer.encode("Speak softly."), end]
    assert frontend.instruction("Speak softly.") == expected
    assert frontend.instruction("Speak softly.<|endofprompt|>") == expected


def test_a_prompt_is_one_piece(frontend: TextFrontend, tokenizer: TextTokenizer) -> None:
    text = "One sentence. " * 30
    assert frontend.prompt(text) == tokenizer.encode(text.strip())


def test_text_can_be_left_alone(tokenizer: TextTokenizer) -> None:
    assert TextFrontend(tokenizer, "none").normalise("5 " + "（5）") == "5 （5）"  # noqa: RUF001


def test_wetext_is_used_or_asked_for(tokenizer: TextTokenizer) -> None:
    try:
        import wetext  # noqa: F401
    except ImportError:
        with pytest.raises(CosyVoiceInitializationError, match="pip install wetext"):
            TextFrontend(tokenizer, "wetext")
        return
    frontend = TextFrontend(tokenizer, "wetext")
    assert frontend.normalise("在2024年") == "在二零二四年"
    assert "three point five dollars" in frontend.normalise("It cost $3.50.")
