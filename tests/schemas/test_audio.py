"""Audio entries and their ids against the raw bytes of the protocol."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicefleet.schemas import End, EntryId, FieldError, Frame, Start
from voicefleet.schemas.audio import (
    FRAME_MS,
    REASONS,
    bytes_per_frame,
    decode,
    samples_per_frame,
)
from voicefleet.schemas.request import SAMPLE_RATES

START = {
    b"event": b"start", b"request": b"r7", b"model": b"piper-en-joe", b"voice": b"joe",
    b"worker": b"gpu0@host", b"sample_rate": b"48000", b"frame_ms": b"20", b"format": b"s16le",
    b"channels": b"1", b"t": b"1700000000000",
}  # fmt: skip
END = {
    b"event": b"end", b"request": b"r7", b"reason": b"failed", b"frames": b"412",
    b"error": b"text_timeout", b"t": b"1700000000001",
}  # fmt: skip

counts = st.integers(0, 2**63 - 1)


def test_the_three_kinds_as_the_protocol_writes_them() -> None:
    assert decode(b"3-0", START) == Start(
        id=EntryId(3, 0),
        request="r7",
        model="piper-en-joe",
        voice="joe",
        worker="gpu0@host",
        sample_rate=48000,
        frame_ms=20,
        format="s16le",
        channels=1,
        t=1700000000000,
    )
    other = decode(b"3-0", START | {b"frame_ms": b"10", b"format": b"f32", b"channels": b"2"})
    assert isinstance(other, Start)
    assert (other.frame_ms, other.format, other.channels) == (10, "f32", 2)
    assert decode(b"3-1", {b"pcm": b"\x01\x00" * 960}) == Frame(
        id=EntryId(3, 1), pcm=b"\x01\x00" * 960
    )
    assert decode("3-413", END) == End(
        id=EntryId(3, 413),
        request="r7",
        reason="failed",
        frames=412,
        error="text_timeout",
        t=1700000000001,
    )


@given(counts, counts, st.binary(max_size=64), st.none() | st.text(max_size=20))
def test_any_frame_is_read_back(turn: int, n: int, pcm: bytes, text: str | None) -> None:
    fields = {b"pcm": pcm}
    if text is not None:
        fields[b"text"] = text.encode("utf-8", "surrogatepass")
    if text is not None and any("\ud800" <= character <= "\udfff" for character in text):
        with pytest.raises(FieldError, match="text: is not valid UTF-8"):
            decode(f"{turn}-{n}", fields)
    else:
        assert decode(f"{turn}-{n}", fields) == Frame(id=EntryId(turn, n), pcm=pcm, text=text)


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_of_the_protocol(reason: str) -> None:
    fields = END | {b"reason": reason.encode()}
    del fields[b"error"]
    end = decode(b"1-1", fields)
    assert isinstance(end, End)
    assert (end.reason, end.error) == (reason, None)
    assert set(REASONS) == {"completed", "stopped", "interrupted", "expired", "rejected", "failed"}


@pytest.mark.parametrize(
    ("entry", "fields", "complaint"),
    [
        (b"x-1", START, "id: is not <turn>-<n>"),
        (b"1-1", {}, "event: is missing"),
        (b"1-1", {b"event": b"middle"}, "event: 'middle' is not one of start, end"),
        (b"1-0", START | {b"sample_rate": b"loud"}, "sample_rate: 'loud' is not an integer"),
        (b"1-1", END | {b"reason": b"bored"}, "reason: 'bored' is not one of completed, stopped"),
        (b"1-1", END | {b"frames": b"-1"}, "frames: '-1' is not an integer from 0"),
        (b"1-1", {b"event": b"end"}, "reason: is missing"),
        (b"1-1", {b"event": b"\xff"}, "event: is not valid UTF-8"),
    ],
)
def test_what_is_no_audio_entry(entry: bytes, fields: dict[bytes, bytes], complaint: str) -> None:
    with pytest.raises(FieldError) as caught:
        decode(entry, fields)
    assert str(caught.value).startswith(complaint)


@given(st.binary(max_size=12), st.dictionaries(st.sampled_from(sorted(START | END | {b"pcm": b""})),
       st.binary(max_size=12)))  # fmt: skip
def test_any_bytes_are_an_entry_or_a_field_error(entry: bytes, fields: dict[bytes, bytes]) -> None:
    try:
        decode(entry, fields)
    except FieldError as error:
        assert str(error).startswith(f"{error.field}: ")


@given(counts, counts)
def test_an_id_is_read_back(turn: int, n: int) -> None:
    entry = EntryId(turn, n)
    assert EntryId.parse(str(entry)) == EntryId.parse(str(entry).encode()) == entry


@given(st.tuples(counts, counts), st.tuples(counts, counts))
def test_ids_are_ordered_as_redis_orders_them(
    left: tuple[int, int], right: tuple[int, int]
) -> None:
    assert (EntryId(*left) < EntryId(*right)) is (left < right)


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "1",
        "1-",
        "-1",
        "1-2-3",
        "1_0-1",
        " 1-1",
        "+1-1",
        "\u0661-\u0661",
        b"\xff-1",
        "1--1",
        "1-1\n",
    ],
)
def test_what_is_no_id(raw: str | bytes) -> None:
    with pytest.raises(ValueError):
        EntryId.parse(raw)


def test_a_frame_is_twenty_milliseconds_at_every_rate() -> None:
    assert [samples_per_frame(rate) for rate in SAMPLE_RATES] == [160, 320, 480, 960]
    assert [bytes_per_frame(rate) for rate in SAMPLE_RATES] == [320, 640, 960, 1920]
    assert all(samples_per_frame(rate) * 1000 == rate * FRAME_MS for rate in SAMPLE_RATES)
