"""Text that is spoken while it is written: the order of reading, and what is heard of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the cosyvoice extra (torch)")

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.engines.cosyvoice2.driving import Driver
from voicefleet.worker.engines.cosyvoice2.lm.interleave import Interleave, Kind, Reading
from voicefleet.worker.engines.protocol import Segment, SegmentLimits
from voicefleet.worker.text.segment import Segmenter

MIX = (5, 15)


def flat(readings: list[Reading]) -> list[tuple[Kind, int]]:
    """The sequence as the model sees it, with ``-1`` for decoded speech."""
    return [
        (kind, token)
        for reading in readings
        for kind, tokens in reading.parts
        for token in tokens or (0,)
    ]


def test_without_a_prompt_text_and_speech_take_turns() -> None:
    order = Interleave([], [], MIX)
    order.push([1, 2, 3])
    assert order.next(0) is None, "five tokens make a turn"
    order.push([4, 5, 6])
    first = order.next(0)
    assert first is not None
    assert first.parts == ((Kind.START, ()), (Kind.TEXT, (1, 2, 3, 4, 5)))
    assert first.fill_at == 15, "token number 15 is the fill token, after fifteen of speech"
    assert order.next(16) is None
    order.push([7, 8, 9, 10, 11, 12])
    second = order.next(16)
    assert second is not None
    assert second.parts == ((Kind.TEXT, (6, 7, 8, 9, 10)),)
    assert second.fill_at == 31
    order.close()
    last = order.next(32)
    assert last is not None
    assert last.final
    assert last.parts == ((Kind.TEXT, (11, 12)), (Kind.TASK, ()))
    assert order.next(40) is None


def test_a_prompt_is_read_before_anything_is_decoded() -> None:
    order = Interleave(list(range(100, 107)), list(range(20)), MIX)
    order.push([1, 2])
    assert order.next(0) is None, "its second turn lacks a text token"
    order.push([3, 4])
    first = order.next(0)
    assert first is not None
    assert [kind for kind, _ in first.parts] == [
        *(Kind.START, Kind.TEXT, Kind.SPEECH, Kind.TEXT, Kind.SPEECH)
    ]
    assert first.parts[3][1] == (105, 106, 1, 2, 3)
    assert len(first.parts[4][1]) == 5
    assert first.fill_at == 10, "the prompt's last turn is filled up"


def test_a_text_that_ends_early_is_read_as_one_that_was_there() -> None:
    order = Interleave([100], list(range(40)), MIX)
    order.push([1, 2, 3])
    order.close()
    reading = order.next(0)
    assert reading is not None
    assert reading.final
    assert reading.parts == (
        (Kind.START, ()),
        (Kind.TEXT, (100, 1, 2, 3)),
        (Kind.TASK, ()),
        (Kind.SPEECH, tuple(range(40))),
    )


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 9), max_size=20),
    st.integers(0, 12),
    st.integers(0, 80),
)
def test_all_text_is_read_in_order(sizes: list[int], prompt_text: int, prompt_speech: int) -> None:
    """However it arrives, and never a token of it twice."""
    order = Interleave([-1 - n for n in range(prompt_text)], list(range(prompt_speech)), MIX)
    readings: list[Reading] = []
    decoded = n = 0
    for size in sizes:
        order.push(list(range(1000 + n, 1000 + n + size)))
        n += size
        while reading := order.next(decoded):
            readings.append(reading)
            assert reading.fill_at >= decoded
            decoded = reading.fill_at + 1
    order.close()
    while reading := order.next(decoded):
        readings.append(reading)
        decoded = reading.fill_at + 1 if not reading.final else decoded
    parts = flat(readings)
    text = [token for kind, token in parts if kind is Kind.TEXT]
    assert text == [-1 - n for n in range(prompt_text)] + list(range(1000, 1000 + n))
    speech = [token for kind, token in parts if kind is Kind.SPEECH]
    assert speech == list(range(prompt_speech))
    assert readings[-1].final
    assert [kind for kind, _ in parts].count(Kind.TASK) == 1


TEXT = (
    "The quick brown fox jumps over the lazy dog and runs into the forest. "
    "Nobody has seen it since, but the dog, who was not that lazy, still looks for it."
)


def cut(limits: SegmentLimits) -> list[Segment]:
    segmenter = Segmenter(limits)
    return segmenter.push(TEXT) + segmenter.flush()


@pytest.fixture(scope="module")
def driver(tiny_pack: Path) -> Driver:
    return Driver(tiny_pack, slots=3, text_streaming=True)


@pytest.fixture(scope="module")
def parts(driver: Driver) -> list[Segment]:
    limits = driver.core.info.limits_for(streamed=True)
    parts = cut(limits)
    assert len(parts) > 5
    assert [part.open for part in parts].count(False) == 2, "two sentences"
    return parts


@pytest.fixture(scope="module")
def whole(driver: Driver, parts: list[Segment]) -> np.ndarray:
    driver.open(1, parts, streamed=True)
    driver.run(1)
    return driver.heard(1)


def test_speech_begins_before_the_sentence_is_written(
    driver: Driver, parts: list[Segment], whole: np.ndarray
) -> None:
    driver.open(2, [], streamed=True)
    driver.core._sequences[2].ended = False
    fed = 0
    for part in parts:
        driver.core.push(2, part)
        fed += 1
        while driver.core.step():
            driver.core.consumed(2, sum(map(len, driver.audio.get(2, []))))
        if not part.open:
            break
        if driver.audio.get(2):
            break
    assert driver.audio.get(2), "no audio came"
    assert parts[fed - 1].open, "the sentence was still being written"
    for part in parts[fed:]:
        driver.core.push(2, part)
    driver.core.end(2)
    driver.run(2)
    assert np.array_equal(driver.heard(2), whole), "when text arrives changes nothing"


def test_every_segment_has_its_mark_in_order(
    driver: Driver, parts: list[Segment], whole: np.ndarray
) -> None:
    marks = driver.marks[1]
    assert [mark.segment.index for _, mark in marks] == [part.index for part in parts]
    places = [at for at, _ in marks]
    assert places == sorted(places)
    assert places[-1] <= len(whole)
    starts = [mark.segment.index for _, mark in marks if mark.resumable]
    firsts = [0, 1 + next(part.index for part in parts if not part.open)]
    assert starts == firsts, "a turn is taken up where a sentence begins"


def test_it_can_be_taken_up_at_a_sentence(
    driver: Driver, parts: list[Segment], whole: np.ndarray
) -> None:
    at, mark = [entry for entry in driver.marks[1] if entry[1].resumable][1]
    driver.open(3, parts[mark.segment.index :], streamed=True)
    driver.run(3)
    assert np.array_equal(driver.heard(3), whole[at:])


def test_it_is_the_same_in_company(driver: Driver, parts: list[Segment], whole: np.ndarray) -> None:
    driver.open(4, parts, streamed=True)
    driver.open(5, parts, streamed=True, seed=8)
    driver.open(6, cut(SegmentLimits()))
    driver.run(4, 5, 6)
    assert np.array_equal(driver.heard(4), whole)
    assert len(driver.heard(5)) == len(whole)


def test_an_unfinished_sentence_is_spoken_at_the_end(driver: Driver) -> None:
    parts = [Segment(0, "One two three", 0, 13, open=True), Segment(1, "four", 14, 18, open=True)]
    driver.open(7, parts, streamed=True)
    driver.run(7)
    assert len(driver.heard(7)) > 0.5 * driver.core.info.native_rate


def test_decoding_continues_the_trained_sequence(tiny_pack: Path) -> None:
    """The logits after each reading are those of the whole interleaved sequence in one pass."""
    oracle = pytest.importorskip("tests.worker.engines.cosyvoice2.oracle")
    pytest.importorskip("cosyvoice", reason="needs the parity group (cosyvoice2-eu)")
    from voicefleet.worker.engines.cosyvoice2.hyperparameters import TINY

    driver = Driver(tiny_pack, slots=2, text_streaming=True)
    reference: Any = oracle.language_model(TINY)
    state = torch.load(tiny_pack / "llm.pt", weights_only=True)
    reference.load_state_dict(state, strict=False)
    decoder = driver.core._runner.decoder
    model = decoder.model
    prefilled: list[Any] = []
    seen: list[Any] = []
    prefill = decoder.prefill

    def spy(slot: int, embeddings: Any) -> None:
        prefilled.append(embeddings.clone())
        prefill(slot, embeddings)

    decoder.prefill = spy  # type: ignore[method-assign]
    hook = model.llm_decoder.register_forward_hook(lambda _m, _i, out: seen.append(out.clone()))
    driver.open(
        1,
        [Segment(0, "one two three four five six seven eight", 0, 40)],
        streamed=True,
        mode="cross_lingual",
    )
    slot = driver.core._sequences[1].slot
    driver.run(1)
    hook.remove()
    history = decoder._history[slot, len(decoder._window) :].tolist()
    x: list[Any] = []
    place = 0
    fill = model.sizes.fill_token
    for embeddings in prefilled:
        x.append(embeddings)
        while place < len(history) and history[place] not in (fill, -1):
            x.append(model.speech(torch.tensor([history[place]])))
            place += 1
        place += 1
    with torch.inference_mode():
        hidden, _ = reference.llm.forward_one_step(torch.cat(x)[None], masks=None)
        expected = reference.llm_decoder(hidden[0])
    assert len(prefilled) > 2
    last = torch.cat(x).shape[0] - 1
    got = [logits[slot] for logits in seen]
    distance = min(float((row - expected[last - 1]).norm()) for row in got)
    assert distance < 1e-4 * float(expected[last - 1].norm())
