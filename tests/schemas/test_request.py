"""Requests and text pieces against the raw bytes of the protocol, limit by limit."""

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicefleet.schemas import FieldError, InvalidRequest, Request, TextPiece
from voicefleet.schemas.request import MAX_INTEGER, MODES, SAMPLE_RATES

TEXT = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich."
NAME = "AZaz09_.:-"

names = st.text(alphabet=NAME, min_size=1, max_size=128)
plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
integers = st.integers(0, MAX_INTEGER)
traces = st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True)
requests = st.builds(
    Request,
    session=names,
    request=names,
    text=plain.filter(bool),
    voice=st.none() | names,
    mode=st.none() | st.sampled_from(MODES),
    instruct=st.none() | plain,
    speed=st.floats(0.5, 2.0),
    seed=st.none() | integers,
    sample_rate=st.sampled_from(SAMPLE_RATES),
    lead_ms=st.none() | st.integers(0, 60_000),
    deadline_ms=st.none() | integers,
    interrupt=st.booleans(),
    traceparent=st.none() | traces,
) | st.builds(Request, session=names, request=names, stream=st.just(True))


def raw(**fields: bytes | str) -> dict[bytes, bytes]:
    """Fields as Redis hands them out, with what every request needs."""
    given = {"session": "s1", "text": TEXT} | fields
    return {
        name.encode(): value if isinstance(value, bytes) else value.encode()
        for name, value in given.items()
    }


def refused(fields: dict[bytes, bytes]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        Request.decode("7-0", fields)
    return caught.value


@given(requests)
def test_what_is_encoded_is_decoded(request: Request) -> None:
    request.validate()
    encoded = {name.encode(): value for name, value in request.encode().items()}
    assert Request.decode("7-0", encoded) == request


@given(st.dictionaries(st.sampled_from([f.encode_name.encode() for f in msgspec.structs.fields(
    Request)]) | st.binary(max_size=8), st.binary(max_size=40)))  # fmt: skip
def test_any_bytes_are_a_request_or_refused_by_field(fields: dict[bytes, bytes]) -> None:
    try:
        request = Request.decode("7-0", fields)
    except InvalidRequest as error:
        assert str(error).startswith(f"{error.field}: ")
        assert error.session is None or error.session.encode() == fields[b"session"]
    else:
        assert Request.decode("8-0", {k.encode(): v for k, v in request.encode().items()})


def test_the_smallest_request_has_the_protocols_defaults() -> None:
    request = Request.decode("1700000000000-3", {b"session": b"s1", b"text": b"Hi."})
    assert request == Request(session="s1", request="1700000000000-3", text="Hi.")
    assert (request.speed, request.sample_rate, request.stream) == (1.0, 48000, False)
    assert (request.lead_ms, request.deadline_ms, request.interrupt) == (None, None, False)
    assert Request(session="s1", text="Hi.").encode() == {"session": b"s1", "text": b"Hi."}


def test_unknown_fields_are_ignored() -> None:
    fields = raw(request="r") | {b"colour": b"\xff", b"\xfe": b""}
    assert Request.decode("7-0", fields) == Request(session="s1", request="r", text=TEXT)


ALLOWED = {
    "session": ["s", NAME, "x" * 128],
    "request": ["r", NAME, "x" * 128],
    "text": ["x", " ", "...", "🎉", "x" * 10_000, "🎉" * 10_000],
    "voice": ["v", "x" * 128],
    "mode": list(MODES),
    "instruct": ["", "x" * 1000],
    "speed": ["0.5", "2.0", "2", "1e0", ".5", "1."],
    "seed": ["0", str(MAX_INTEGER)],
    "sample_rate": ["8000", "16000", "24000", "48000"],
    "lead_ms": ["0", "60000"],
    "deadline_ms": ["0", str(MAX_INTEGER)],
    "interrupt": ["0", "1"],
}

REFUSED = {
    "session": ["", "x" * 129, "a b", "s1\n", "s{1}", "é", b"\xff", "\0"],
    "request": ["", "x" * 129, "a/b", "r\n", "*", b"\xff"],
    "text": ["x" * 10_001, "🎉" * 10_001, b"abc\xff", b"\xed\xa0\x80"],
    "voice": ["", "x" * 129, "joe!", b"\xff"],
    "mode": ["", "sing", "SFT", "sft "],
    "instruct": ["x" * 1001, b"\xc3"],
    "speed": [
        "",
        "0.49",
        "2.01",
        "9",
        "nan",
        "inf",
        "-1",
        "fast",
        "0_1.5",
        " 1",
        "\uff11",
        "1" * 33,
    ],
    "seed": ["", "-1", str(MAX_INTEGER + 1), "1.0", "1_0", " 1", "\u0661", "0x1", "9" * 5000],
    "sample_rate": ["", "44100", "48000.0", "0", "048000"],
    "lead_ms": ["-1", "60001", "soon"],
    "deadline_ms": ["-1", str(MAX_INTEGER + 1), "tomorrow"],
    "interrupt": ["", "2", "true", "yes"],
    "stream": ["", "2", "true"],
}

TEXT_WORDS = "characters|UTF-8"
NAME_WORDS = "1 to 128 characters of A-Z a-z 0-9 _ . : -|UTF-8"
ALLOWED_WORDS = {
    "session": NAME_WORDS,
    "request": NAME_WORDS,
    "voice": NAME_WORDS,
    "text": TEXT_WORDS,
    "instruct": "at most 1000 are allowed|UTF-8",
    "mode": "one of zero_shot, cross_lingual, instruct, sft",
    "speed": "a number from 0.5 to 2.0",
    "seed": f"an integer from 0 to {MAX_INTEGER}",
    "sample_rate": "one of 8000, 16000, 24000, 48000",
    "lead_ms": "an integer from 0 to 60000",
    "deadline_ms": f"an integer from 0 to {MAX_INTEGER}",
    "interrupt": "0 or 1",
    "stream": "0 or 1",
}


def cases(table: dict[str, list[str]]) -> list[tuple[str, str | bytes]]:
    return [(field, value) for field, values in table.items() for value in values]


def shown(value: object) -> str:
    return f"{value!r:.20}"


@pytest.mark.parametrize(("field", "value"), cases(ALLOWED), ids=shown)
def test_what_the_protocol_allows(field: str, value: str) -> None:
    request = Request.decode("7-0", raw(**{field: value}))
    got = getattr(request, field)
    assert got == (value == "1" if isinstance(got, bool) else type(got)(value))


@pytest.mark.parametrize(("field", "value"), cases(REFUSED), ids=shown)
def test_what_the_protocol_refuses(field: str, value: str | bytes) -> None:
    error = refused(raw(**{field: value}))
    assert error.field == field
    assert str(error).startswith(f"{field}: ")
    assert re.search(ALLOWED_WORDS[field], str(error))
    assert len(str(error)) < 200
    assert error.session == (None if field == "session" else "s1")
    assert error.request == "7-0"
    assert TEXT not in str(error)


@pytest.mark.parametrize("text", ["x" * 10_001, "Geheim! \ud800"])
def test_the_client_is_told_before_it_sends(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^text: "):
        Request(session="s1", text=text).validate()
    with pytest.raises(InvalidRequest, match=r"^session: "):
        Request(session=f"s1\ud800{text[:1]}", text="Hi.").validate()


def test_missing_session_is_said_and_leaves_nobody_to_answer() -> None:
    error = refused({b"text": b"Hi."})
    assert (error.field, error.session, error.request) == ("session", None, "7-0")
    assert "is missing" in str(error)


def test_an_invalid_request_keeps_its_name_for_the_answer() -> None:
    error = refused(raw(request="r9", speed="9"))
    assert (error.session, error.request) == ("s1", "r9")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"stream": "1"}, "text: is not allowed with stream 1"),
        ({"stream": "1", "text": ""}, "text: is not allowed with stream 1"),
    ],
)
def test_both_or_neither_of_text_and_stream(fields: dict[str, str], complaint: str) -> None:
    assert str(refused(raw(**fields))).startswith(complaint)


def test_neither_text_nor_stream() -> None:
    assert refused({b"session": b"s1"}).field == "text"
    assert Request.decode("7-0", {b"session": b"s1", b"stream": b"1"}).text is None


@given(st.text(min_size=4, max_size=50), st.sampled_from(sorted(REFUSED)))
def test_no_error_quotes_the_text(text: str, field: str) -> None:
    fields = raw(text=f"<{text}>".encode("utf-8", "surrogatepass"))
    for value in REFUSED[field]:
        wrong = fields if field == "text" else fields | {field.encode(): raw(x=value)[b"x"]}
        try:
            Request.decode("7-0", wrong)
        except InvalidRequest as error:
            assert f"<{text}>" not in str(error)


@pytest.mark.parametrize("trace", [b"", b"00-x", b"\xff", b"00-" + b"A" * 32])
def test_a_bad_traceparent_fails_nothing(trace: bytes) -> None:
    assert Request.decode("7-0", raw(traceparent=trace)).traceparent is None


@given(names, names, names)
def test_the_seed_is_derived_from_session_and_request(
    session: str, request: str, other: str
) -> None:
    seed = Request(session=session, request=request, text="a").seed_or_derived
    assert seed == Request(session=session, request=request, text="b").seed_or_derived
    assert 0 <= seed <= MAX_INTEGER
    if other != request:
        assert seed != Request(session=session, request=other).seed_or_derived
    assert Request(session=session, request=request, seed=0).seed_or_derived == 0


def test_the_derived_seed_stays_what_it_is() -> None:
    """Workers of two versions must make the same samples of one turn."""
    assert Request(session="s1", request="r7", text="x").seed_or_derived == 142580264046240061


def test_a_request_without_a_name_says_so() -> None:
    with pytest.raises(ValueError, match="no name before"):
        _ = Request(session="s1", text="Hi.").name


# Text that arrives while it is being spoken.


@given(st.builds(TextPiece, plain, *[st.booleans()] * 4))
def test_a_text_piece_is_what_was_encoded(piece: TextPiece) -> None:
    encoded = piece.encode()
    assert encoded  # an entry needs a field
    assert TextPiece.decode({name.encode(): value for name, value in encoded.items()}) == piece


@pytest.mark.parametrize(
    ("fields", "piece"),
    [
        ({b"text": b"The first words "}, TextPiece("The first words ")),
        ({b"text": b"of a sentence.", b"flush": b"1"}, TextPiece("of a sentence.", flush=True)),
        ({b"end": b"1"}, TextPiece(end=True)),
        ({b"settle": b"1"}, TextPiece(settle=True)),
        ({b"timeout": b"1"}, TextPiece(timeout=True)),
        ({b"text": b"x" * 10_000}, TextPiece("x" * 10_000)),
        ({b"flush": b"0", b"else": b"\xff"}, TextPiece()),
    ],
)
def test_text_pieces_as_the_protocol_writes_them(
    fields: dict[bytes, bytes], piece: TextPiece
) -> None:
    assert TextPiece.decode(fields) == piece


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({b"text": b"x" * 10_001}, "text: has 10001 characters; at most 10000 are allowed"),
        ({b"text": b"secret\xff"}, "text: is not valid UTF-8 at byte 6"),
        ({b"flush": b"yes"}, "flush: 'yes' is not 0 or 1"),
        ({b"end": b""}, "end: '' is not 0 or 1"),
    ],
)
def test_text_pieces_that_are_refused(fields: dict[bytes, bytes], complaint: str) -> None:
    with pytest.raises(FieldError) as caught:
        TextPiece.decode(fields)
    assert str(caught.value) == complaint
