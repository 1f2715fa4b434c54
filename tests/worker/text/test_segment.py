"""Segmentation: a table of cases, and what holds for any text in any pieces."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from voicefleet.worker.engines.protocol import Segment, SegmentLimits
from voicefleet.worker.text.normalise import normalise, speakable
from voicefleet.worker.text.segment import Segmenter

WIDE = SegmentLimits(first_chars=200, max_chars=400)


def segments(text: str, limits: SegmentLimits = WIDE) -> list[Segment]:
    segmenter = Segmenter(limits)
    return segmenter.push(text) + segmenter.flush()


def texts(text: str, limits: SegmentLimits = WIDE) -> list[str]:
    return [segment.text for segment in segments(text, limits)]


SENTENCES = [
    "One sentence.|And another.",
    "Really?|Yes!|No?!|Fine.",
    "Dr. Smith met Mrs. Jones, Prof. Brown and St. Nick.|They talked.",
    "It cost $3.50, not 3.14 or 1,000.50.|Then v1.2.3 came out.",
    "Use tools, e.g. hammers, i.e. things.|Good.",
    "Cats, dogs, etc. are animals.|So it is.",
    "I live in the U.S. and work.|The U.S. Senate met.",
    "He lives in the U.S.|He likes it.",
    "We meet at 5 p.m. on Monday.|It ends at 6 p.m.|Then we go.",
    "J. K. Rowling and George W. Bush met.|They did.",
    "See Fig. 3 and No. 5, pp. 7.|No.|I won't.",
    "Born on Jan. 5 in Washington D.C.|She left.",
    "Acme Inc. shares rose, Apple Inc. Shares too.|The end.",
    "Well... maybe.|Wait...|What?",
    "Hmm… so it is.|Oh…|Right.",
    'He said "It works." Then he left.',
    'She asked "why?" and left.|"Because!" he cried.',
    "(It was late.)|Nobody came.|[Sic!]|Yes.",
    "“Quoted.”|‘Single.’|«Guillemets.»|Done.",  # noqa: RUF001
    "**Bold end.**|Next one.",
    "Visit example.com or mail a.b@c.org.|Thanks.",
    "Wow!!!|Great!?!|Stop.",
    "Great! 🎉|Let's go.",
    "In 1999.|It was so.",
    "今天天气很好。|我们去公园吧！|你觉得怎么样？|“好的。”|他说，走吧。",  # noqa: RUF001
    "これは文です。|「次の文。」|終わり",
    "Это предложение.|Вот другое.",
    "¿Qué tal?|¡Muy bien!|¿Y tú?",
    "क्या हाल है।|सब ठीक है।",
    "هل أنت بخير؟ نعم.",
]


@pytest.mark.parametrize("marked", SENTENCES)
def test_sentences(marked: str):
    expected = marked.split("|")
    if marked.startswith("He said"):
        expected = ['He said "It works."', "Then he left."]
    elif marked.startswith("هل"):
        expected = ["هل أنت بخير؟", "نعم."]
    joiner = "" if "。" in marked else " "
    found = texts(joiner.join(expected))
    assert found == [normalise(sentence) for sentence in expected]


LINES = [
    ("First paragraph\n\nSecond one", ["First paragraph", "Second one"]),
    ("A line that\nis wrapped.", ["A line that is wrapped."]),
    ("Ends here.\nnext line", ["Ends here.", "next line"]),
    ("# Title\nBody", ["Title", "Body"]),
    ("To buy:\n- milk\n- two eggs\n", ["To buy:", "milk", "two eggs"]),
    ("1. Open it.\n2. Close it.", ["1. Open it.", "2. Close it."]),
    ("Above\n---\nBelow", ["Above", "Below"]),
    ("One\r\n\r\nTwo\r\n", ["One", "Two"]),
    ("🎉\n\n...\n\nWords", ["Words"]),
]


@pytest.mark.parametrize(("text", "expected"), LINES)
def test_lines(text: str, expected: list[str]):
    assert texts(text) == expected


@pytest.mark.parametrize("text", ["", " \n ", "...", "?! — *", "🎉🎉", "\u200b", "---\n***"])
def test_nothing_to_say(text: str):
    assert segments(text) == []


def test_unspeakable_pieces_take_no_index():
    found = segments("🎉\n\nOne.\n\n---\n\nTwo.")
    assert [(s.index, s.text) for s in found] == [(0, "One."), (1, "Two.")]


def test_offsets_are_those_of_the_raw_text():
    raw = "  **Hello**,\nworld!  🎉 Bye."
    found = segments(raw)
    assert [s.text for s in found] == ["Hello, world!", "Bye."]
    assert [raw[s.start : s.end] for s in found] == ["**Hello**,\nworld!", "🎉 Bye."]


LONG = (
    "When the quick brown fox finally managed to jump over the lazy dog, everybody in the village "
    "cheered loudly; however, nobody had noticed that the clock on the tower had stopped many "
    "years before, which is why the festival began at the wrong hour and ended the next morning."
)


def test_a_long_sentence_is_cut_at_clauses():
    found = texts(LONG, SegmentLimits(first_chars=80, max_chars=120))
    assert found[0] == "When the quick brown fox finally managed to jump over the lazy dog,"
    assert found[1] == "everybody in the village cheered loudly; however,"
    assert " ".join(found) == LONG


def test_the_first_segment_is_cut_at_the_earliest_clause_worth_it():
    text = "Well, since you asked so nicely, I will tell you all, from the beginning to the end."
    assert texts(text, SegmentLimits(60, 200))[0] == "Well, since you asked so nicely,"


def test_without_a_clause_it_is_cut_between_words_and_not_behind_a_small_one():
    text = "Every good engineer of the whole wide world likes to read a short and a simple module."
    assert texts(text, SegmentLimits(40, 200)) == [
        "Every good engineer of the whole wide",
        "world likes to read a short and a simple module.",
    ]


def test_a_first_sentence_a_little_longer_is_not_cut():
    text = "The fox jumps over the dog, and it goes home at last."
    assert texts(text, SegmentLimits(45, 200)) == [text]


def test_a_cut_leaves_no_tail_of_two_words():
    text = "a" * 30 + " " + "word " * 13 + "and the end."
    found = texts(text, SegmentLimits(100, 100))
    assert " ".join(found) == text
    assert len(found[-1]) >= 16


def test_a_word_is_cut_only_when_it_is_longer_than_allowed():
    found = texts("x" * 450 + " tail", SegmentLimits(60, 200))
    assert [len(text) for text in found] == [200, 200, 55]
    url = "https://example.com/" + "path/" * 30
    assert url in texts(f"See {url} for all of the rest of it.", SegmentLimits(60, 200))[1]


def test_a_hard_cut_keeps_marks_with_their_letter():
    found = texts("e\u0323\u0302" * 100, SegmentLimits(50, 50))
    assert all(text[0] == "ệ" for text in found)


def test_long_cjk_without_spaces_is_cut_early_too():
    assert len(texts("好" * 500, SegmentLimits(60, 200))[0]) <= 75


def test_a_segment_comes_as_soon_as_the_next_sentence_begins():
    segmenter = Segmenter(WIDE)
    assert segmenter.push("Hello there. ") == []
    assert [s.text for s in segmenter.push("How")] == ["Hello there."]
    assert [s.text for s in segmenter.push(" are you?\n\n")] == ["How are you?"]
    assert segmenter.flush() == []


def test_flush_speaks_an_unfinished_sentence():
    segmenter = Segmenter(WIDE)
    segmenter.push("One moment, ")
    assert segmenter.flush() == [Segment(0, "One moment,", 0, 11)]
    segmenter.push("please")
    assert segmenter.flush() == [Segment(1, "please", 12, 18)]
    assert segmenter.flush() == []


COMPLETE = [
    *[
        "This is the first sentence of a long answer. ",
        "Let me look that up.",
        "Really?!",
        "Wait...",
    ],
    *[
        'He said "It works."',
        "(It was late.) ",
        "**Bold.**",
        "Great! 🎉 ",
        "今天天气很好。",
        "क्या हाल है। ",
    ],
    *["It was 1999. ", "It costs $3.50. ", "He pays 20%. ", "Mail a.b@c.org.", "Use Node.js. "],
    *["No.", "The answer is no.", "I love modern art. ", "She met Dr. Smith.", "Version 3 is out."],
    *["Title\n\n", "# Title\n", "1. Open it. "],
]
GOES_ON = [
    *["", " ", "This is", "Well, ", "This is: ", "a line\n", "- milk\n", "It is late, (", "so -"],
    *[
        "She met Dr. ",
        "She met Dr.",
        "Use tools, e.g. ",
        "See Fig. ",
        "cats, etc. ",
        "See Art. ",
        "See No. ",
        "Born on Jan. ",
    ],
    *["George W. ", "He lives in the U.S. ", "We meet at 5 p.m. ", "Apple Inc. ", "On Main St. "],
    *["3.", "3. ", "First:\n1. ", "Pi is 3.", "It cost $3.", "Pi is ３．", "v1.2."],  # noqa: RUF001
]


@pytest.mark.parametrize("text", COMPLETE)
def test_a_complete_sentence_settles(text: str):
    segmenter = Segmenter(WIDE)
    assert segmenter.push(text) == []
    assert [s.text for s in segmenter.settle()] == [normalise(text)]
    assert not segmenter.reads_complete
    assert segmenter.settle() == segmenter.flush() == []


@pytest.mark.parametrize("text", GOES_ON)
def test_what_may_go_on_does_not_settle(text: str):
    segmenter = Segmenter(WIDE)
    assert segmenter.push(text) == []
    assert segmenter.settle() == []
    whole = text + "one, and so on."
    assert segmenter.push("one, and so on.") + segmenter.flush() == segments(whole)


def test_text_goes_on_behind_what_settled():
    segmenter = Segmenter(WIDE)
    first = segmenter.push("One moment. ") + segmenter.settle() + segmenter.settle()
    assert first == [Segment(0, "One moment.", 0, 11)]
    assert segmenter.push("It is her") + segmenter.settle() == []
    rest = segmenter.push("e. So") + segmenter.flush()
    assert rest == [Segment(1, "It is here.", 12, 23), Segment(2, "So", 24, 26)]


PIECES = st.lists(
    st.sampled_from(
        [
            *"aB1.,;:!?…。，—-*#_`()\"'” \n🎉好ß\u200b\u0301\r\t",  # noqa: RUF001
            *["Dr.", "e.g.", "U.S.", " The ", " word", "verylongword", ". ", "! ", "3.14", " 5"],
            *["\n\n", "\n- ", "\n1. ", "...", "   ", ", and ", "A. ", "p.m. ", " It", "No. "],
        ]
    ),
    max_size=120,
)
LIMITS = st.builds(SegmentLimits, first_chars=st.integers(10, 60), max_chars=st.integers(20, 90))


@settings(max_examples=300, deadline=None)
@given(pieces=PIECES, limits=LIMITS, data=st.data())
def test_pieces_and_their_size_never_show(
    pieces: list[str], limits: SegmentLimits, data: st.DataObject
):
    text = "".join(pieces)
    offsets = st.sets(st.integers(0, len(text)), max_size=3)
    flushes = data.draw(offsets, label="flushes")
    settles = data.draw(offsets, label="settles")
    cuts = data.draw(st.sets(st.integers(0, len(text)), max_size=40), label="cuts")

    def spoken(cuts: set[int]) -> list[Segment]:
        segmenter = Segmenter(limits)
        found: list[Segment] = []
        begin = 0
        for end in sorted(cuts | flushes | settles | {len(text)}):
            found += segmenter.push(text[begin:end])
            if end in settles:
                found += segmenter.settle() + segmenter.settle()
            if end in flushes:
                found += segmenter.flush()
            begin = end
        return found + segmenter.flush()

    assert spoken(cuts) == spoken(set()) == spoken(set(range(len(text))))


@settings(max_examples=300, deadline=None)
@given(pieces=PIECES, limits=LIMITS)
@example(pieces=["." * 200, "a", " " * 200, "b", "\n" * 200, "c"], limits=SegmentLimits(20, 40))
def test_every_speakable_character_is_in_exactly_one_segment(
    pieces: list[str], limits: SegmentLimits
):
    text = "".join(pieces)
    found = segments(text, limits)
    assert [s.index for s in found] == list(range(len(found)))
    end = 0
    for segment in found:
        assert end <= segment.start < segment.end <= len(text)
        assert not speakable(text[end : segment.start])
        assert segment.text == normalise(text[segment.start : segment.end])
        assert speakable(segment.text)
        assert segment.end - segment.start <= limits.max_chars
        end = segment.end
    assert not speakable(text[end:])


@settings(max_examples=200, deadline=None)
@given(
    words=st.lists(st.text("abcdefgh", min_size=1, max_size=20), max_size=60),
    joiners=st.lists(st.sampled_from([" ", ", ", ". ", "; ", "\n", " - "]), min_size=60),
    limits=LIMITS,
)
def test_no_word_is_cut(words: list[str], joiners: list[str], limits: SegmentLimits):
    text = "".join(word + joiner for word, joiner in zip(words, joiners, strict=False))
    for segment in segments(text, limits):
        assert not (
            text[segment.end - 1].isalpha() and text[segment.end : segment.end + 1].isalpha()
        )
