"""A turn's text from its pieces to its segments, and what is decided when no more comes."""

from collections.abc import Sequence

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicefleet.schemas.request import TextPiece
from voicefleet.worker.control.text_stream import TextLog
from voicefleet.worker.engines.protocol import Segment, SegmentLimits
from voicefleet.worker.text import feed as feeding
from voicefleet.worker.text.feed import TEXT_TIMEOUT, TextFeed

pytestmark = pytest.mark.anyio

LIMITS = SegmentLimits(first_chars=20, max_chars=40)
SETTLE, TIMEOUT = TextPiece(settle=True), TextPiece(timeout=True)
HANG_S = 20.0


def feed(*, timeout_s: float = HANG_S, settle_s: float = 0.0) -> TextFeed:
    return TextFeed(LIMITS, timeout_s, 10_000, settle_s)


async def said(feed: TextFeed) -> list[str]:
    with anyio.fail_after(2 * HANG_S):
        return [segment.text async for segment in feed.segments()]


WORDS = ["One two. ", "Dr. ", "and so", " on.", "3.", "14 ", "No. ", "It", "\n\n", "U.S. ", "Yes!"]
PIECES = st.lists(
    st.builds(
        TextPiece,
        st.sampled_from(["", *WORDS]),
        **{flag: st.sampled_from([False, False, True]) for flag in ("flush", "settle")},
    ),
    max_size=20,
)
LAST = st.sampled_from([TextPiece(end=True), TIMEOUT])


async def cut(pieces: Sequence[TextPiece], *, one_by_one: bool) -> tuple[list[Segment], str | None]:
    taker, found = feed(), list[Segment]()

    async def take() -> None:
        found.extend([segment async for segment in taker.segments()])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take)
        for piece in pieces:
            taker.push(piece)
            if one_by_one:
                await anyio.wait_all_tasks_blocked()
    return found, taker.failure


class TestSamePieces:
    @given(pieces=PIECES, last=LAST)
    def test_same_segments_whenever_they_come(
        self, pieces: list[TextPiece], last: TextPiece
    ) -> None:
        async def both() -> None:
            at_once = await cut([*pieces, last], one_by_one=False)
            assert await cut([*pieces, last, TextPiece("More.")], one_by_one=True) == at_once
            assert at_once[1] == (TEXT_TIMEOUT if last.timeout else None)

        anyio.run(both)

    @given(pieces=PIECES, last=LAST)
    def test_the_log_says_what_the_stream_said(
        self, pieces: list[TextPiece], last: TextPiece
    ) -> None:
        async def both() -> None:
            log = TextLog()
            for number, piece in enumerate([*pieces, last], 1):
                log.note(f"{number}-0".encode(), piece)
            assert await cut(log.pieces, one_by_one=False) == await cut(
                [*pieces, last], one_by_one=False
            )

        anyio.run(both)

    async def test_the_log_does_not_grow_by_what_changes_nothing(self) -> None:
        log = TextLog()
        for number in range(100):
            for piece in (SETTLE, TextPiece(flush=True), TextPiece()):
                log.note(f"{number}-0".encode(), piece)
        assert log.pieces == []
        log.note(b"100-0", TextPiece("One"))
        for number in range(101, 200):
            for piece in (SETTLE, TextPiece(), TextPiece(flush=True), SETTLE):
                log.note(f"{number}-0".encode(), piece)
        assert log.pieces == [TextPiece("One"), SETTLE, TextPiece(flush=True)]


class TestSilence:
    """The writer pauses."""

    async def test_a_complete_sentence_settles_and_text_goes_on(self) -> None:
        text = feed(settle_s=0.02)
        text.push(TextPiece("A whole sentence. "))
        segments = text.segments()
        with anyio.fail_after(HANG_S):
            assert (await anext(segments)).text == "A whole sentence."
        text.push(TextPiece("and some more", end=True))
        assert [segment.text async for segment in segments] == ["and some more"]
        assert text.failure is None

    async def test_it_is_decided_once_until_there_is_more_text(self) -> None:
        text = feed(settle_s=0.01, timeout_s=0.2)
        marks: list[TextPiece] = []

        async def mark(piece: TextPiece) -> None:
            marks.append(piece)
            text.push(piece)
            if marks == [SETTLE]:
                text.push(TextPiece("Another one. Half"))

        text.mark = mark
        text.push(TextPiece("One. "))
        assert await said(text) == ["One.", "Another one.", "Half"]
        assert marks == [SETTLE, TIMEOUT]
        assert text.failure == TEXT_TIMEOUT

    async def test_zero_never_settles(self) -> None:
        text = feed(timeout_s=0.1)
        marks: list[TextPiece] = []

        async def mark(piece: TextPiece) -> None:
            marks.append(piece)
            text.push(piece)

        text.mark = mark
        text.push(TextPiece("A whole sentence. "))
        assert await said(text) == ["A whole sentence."]
        assert marks == [TIMEOUT]

    async def test_it_is_no_text_and_puts_no_timeout_off(self) -> None:
        text = feed(timeout_s=0.3)
        async with anyio.create_task_group() as tasks:

            async def settle() -> None:
                while True:
                    text.push(SETTLE)
                    await anyio.sleep(0.01)

            tasks.start_soon(settle)
            text.push(TextPiece("We met Dr. "))
            assert await said(text) == ["We met Dr."]
            tasks.cancel_scope.cancel()
        assert text.failure == TEXT_TIMEOUT

    @pytest.mark.parametrize("mark", [SETTLE, TIMEOUT])
    async def test_a_mark_without_effect_is_tried_again(
        self, mark: TextPiece, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(feeding, "MARK_AGAIN_S", 0.01)
        text = feed(timeout_s=0.02 if mark == TIMEOUT else HANG_S, settle_s=0.01)
        tries: list[TextPiece] = []

        async def lose(piece: TextPiece) -> None:
            tries.append(piece)
            if len(tries) == 3:
                text.push(piece)
                text.push(TextPiece(end=True))

        text.mark = lose
        text.push(TextPiece("One. " if mark == SETTLE else "Half"))
        assert await said(text) == ["One." if mark == SETTLE else "Half"]
        assert tries == [mark] * 3
