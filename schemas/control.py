"""What a session's control key ``tts:control:{<S>}`` says: pause, resume, stop."""

import enum

import msgspec

from voicefleet.schemas.fields import SESSION, FieldError, excerpt


class Level(enum.Enum):
    """A control value that holds for the whole session."""

    RESUME = "resume"
    PAUSE = "pause"
    STOP = "stop"


class StopThrough(msgspec.Struct, frozen=True):
    """``stop:<request>``: ends that turn and every turn of the session added before it."""

    request: str


ControlValue = Level | StopThrough


def encode(value: ControlValue) -> str:
    """The key's value."""
    return f"stop:{value.request}" if isinstance(value, StopThrough) else value.value


def decode(raw: bytes | None) -> ControlValue:
    """Read the key's value; ``None``, a missing key, means resume.

    Raises:
        FieldError: The value is unknown. The session then goes on as it was.
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
