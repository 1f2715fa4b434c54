"""The control key against the raw bytes of the protocol."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicefleet.schemas import ControlValue, FieldError, Level, StopThrough
from voicefleet.schemas.control import decode, encode

names = st.from_regex(r"[A-Za-z0-9_.:\-]{1,128}", fullmatch=True)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (None, Level.RESUME),
        (b"resume", Level.RESUME),
        (b"pause", Level.PAUSE),
        (b"PAUSE", Level.PAUSE),
        (b" Stop\n", Level.STOP),
        (b"stop:r7", StopThrough("r7")),
        (b"STOP:R7", StopThrough("R7")),
        (b"stop:1700000000000-3", StopThrough("1700000000000-3")),
        (b"stop:a:b", StopThrough("a:b")),
        (b"stop:" + b"x" * 128, StopThrough("x" * 128)),
    ],
)
def test_the_values_of_the_protocol(raw: bytes | None, value: ControlValue) -> None:
    assert decode(raw) == value


@pytest.mark.parametrize(
    "raw",
    [b"", b"halt", b"stop:", b"stop:a b", b"stop:" + b"x" * 129, b"pause:r7", b"stop r7", b"\xff"],
)
def test_unknown_values_are_named_with_those_there_are(raw: bytes) -> None:
    with pytest.raises(FieldError) as caught:
        decode(raw)
    assert str(caught.value).startswith("control: ")
    assert str(caught.value).endswith("is not pause, resume, stop or stop:<request>")
    assert len(str(caught.value)) < 120


@given(st.sampled_from(Level) | st.builds(StopThrough, names))
def test_what_is_encoded_is_decoded(value: ControlValue) -> None:
    assert decode(encode(value).encode()) == value


@given(st.binary(max_size=40))
def test_any_bytes_are_a_control_value_or_a_field_error(raw: bytes) -> None:
    try:
        decode(raw)
    except FieldError as error:
        assert error.field == "control"
