"""The session's wish: what ``tts:control:{<S>}`` says."""

import enum

import msgspec

from voicefleet.schemas.fields import SESSION, FieldError, excerpt


class Level(enum.Enum):
    """What holds for the whole session."""

    RESUME = "resume"
    PAUSE = "pause"
    STOP = "stop"


class StopThrough(msgspec.Struct, frozen=True):
    """``stop:<request>``: ends that turn and every turn of the session added before it."""

    request: str


ControlValue = Level | StopThrough


def encode(wish: ControlValue) -> str:
    """The key's value."""
    return f"stop:{wish.request}" if isinstance(wish, StopThrough) else wish.value


def decode(raw: bytes | None) -> ControlValue:
    """Read the key's value; a missing key means resume.

    Raises:
        FieldError: An unknown value, which leaves things as they are.
    """
    if raw is None:
        return Level.RESUME
    value = raw.decode("utf-8", "replace").strip()
    verb, colon, request = value.partition(":")
    verb = verb.lower()
    if verb == "stop" and colon and SESSION.fullmatch(request):
        return StopThrough(request)
    if not colon:
        for level in Level:
            if verb == level.value:
                return level
    raise FieldError("control", f"{excerpt(value)} is not pause, resume, stop or stop:<request>")
