"""A request to speak: one entry of ``tts:requests:<model>``, and of its text stream."""

import hashlib
import re
from typing import Final

import msgspec

from voicefleet.schemas import fields as f
from voicefleet.schemas.fields import FieldError, Fields

SAMPLE_RATES: Final = (8000, 16000, 24000, 48000)
DEFAULT_SAMPLE_RATE: Final = 48000
MODES: Final = ("zero_shot", "cross_lingual", "instruct", "sft")
MAX_TEXT: Final = 10_000
"""Characters of a request's text, and of one entry of a text stream."""

MAX_INSTRUCT: Final = 1_000
"""Characters."""

MIN_SPEED: Final = 0.5
MAX_SPEED: Final = 2.0
MAX_LEAD_MS: Final = 60_000
MAX_INTEGER: Final = 2**63 - 1
REMEMBERED_NAMES: Final = 1_024
"""So many of a session's newest requests are known by their names (``acquire.lua``)."""

_PIECE_FLAGS: Final = ("flush", "end", "settle", "timeout")
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class InvalidRequest(ValueError):
    """A request the protocol does not allow.

    ``session`` is ``None`` where it could not be read: then nobody can be answered in a session.
    ``request`` is the turn's name, the entry id where the name itself is invalid.
    """

    def __init__(self, error: FieldError, session: str | None, request: str) -> None:
        super().__init__(str(error))
        self.field = error.field
        self.session = session
        self.request = request


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a session, as the orchestrator asked for it.

    ``request`` is the turn's name; ``None`` before the server has given the entry its id.
    ``lead_ms``, ``voice``, ``mode`` and ``seed`` are ``None`` where the default applies.
    """

    session: str
    request: str | None = None
    text: str | None = None
    stream: bool = False
    voice: str | None = None
    mode: str | None = None
    instruct: str | None = None
    speed: float = 1.0
    seed: int | None = None
    sample_rate: int = DEFAULT_SAMPLE_RATE
    lead_ms: int | None = None
    deadline_ms: int | None = None
    interrupt: bool = False
    traceparent: str | None = None

    @property
    def name(self) -> str:
        """The turn's name. Raises ``ValueError`` before the request has one."""
        if self.request is None:
            raise ValueError("the request has no name before it is added to a stream")
        return self.request

    @property
    def seed_or_derived(self) -> int:
        """The seed asked for, else one that every worker derives from session and name alike."""
        if self.seed is not None:
            return self.seed
        digest = hashlib.blake2b(f"{self.session}\0{self.name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") & MAX_INTEGER

    def validate(self) -> None:
        """Check every limit of the protocol.

        Raises:
            InvalidRequest: Naming the first field at fault.
        """
        Request.decode(self.request or "0-0", {k.encode(): v for k, v in self.encode().items()})

    def encode(self) -> dict[str, bytes]:
        """The entry's fields; those at their default are left out."""
        out: dict[str, bytes] = {}
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            if field.type in (str, str | None):
                # Lone surrogates pass, and are then refused as the invalid UTF-8 they are.
                out[field.name] = value.encode("utf-8", "surrogatepass")
            else:
                out[field.name] = str(int(value) if field.type is bool else value).encode()
        return out

    @classmethod
    def decode(cls, entry: str, fields: Fields) -> "Request":
        """Read one stream entry; unknown fields are ignored.

        Raises:
            InvalidRequest: A required field is missing or a value is outside its limits.
        """
        session: str | None = None
        name = entry
        try:
            session = f.name(fields, "session")
            if session is None:
                raise FieldError("session", f"is missing; it is {f.NAME_WORDS}")
            name = f.name(fields, "request") or entry
            return cls._decode(session, name, fields)
        except FieldError as error:
            raise InvalidRequest(error, session, name) from None

    @classmethod
    def _decode(cls, session: str, name: str, fields: Fields) -> "Request":
        stream = f.flag(fields, "stream")
        text = f.text(fields, "text", MAX_TEXT)
        if stream and text is not None:
            raise FieldError("text", "is not allowed with stream 1: send it in the text stream")
        if not stream and not text:
            raise FieldError("text", "is missing or empty; give text, or stream 1")
        rate = f.choice(fields, "sample_rate", [str(rate) for rate in SAMPLE_RATES])
        speed = f.number(fields, "speed", MIN_SPEED, MAX_SPEED)
        # W3C trace context: an invalid traceparent is ignored, it never fails the work it traces.
        trace = fields.get(b"traceparent", b"").decode("ascii", "replace")
        return cls(
            session=session,
            request=name,
            text=text,
            stream=stream,
            voice=f.name(fields, "voice"),
            mode=f.choice(fields, "mode", MODES),
            instruct=f.text(fields, "instruct", MAX_INSTRUCT),
            speed=1.0 if speed is None else speed,
            seed=f.integer(fields, "seed", 0, MAX_INTEGER),
            sample_rate=DEFAULT_SAMPLE_RATE if rate is None else int(rate),
            lead_ms=f.integer(fields, "lead_ms", 0, MAX_LEAD_MS),
            deadline_ms=f.integer(fields, "deadline_ms", 0, MAX_INTEGER),
            interrupt=f.flag(fields, "interrupt"),
            traceparent=trace if _TRACEPARENT.fullmatch(trace) else None,
        )


class TextPiece(msgspec.Struct, frozen=True):
    """One entry of a text stream: more text, a flush, the end, or several of these at once.

    Workers add two more: ``settle`` speaks all up to here if it reads as a complete sentence;
    ``timeout`` speaks all up to here and then fails the turn, because no text came.
    """

    text: str = ""
    flush: bool = False
    end: bool = False
    settle: bool = False
    timeout: bool = False

    def encode(self) -> dict[str, bytes]:
        """The entry's fields. An empty piece is encoded as empty text."""
        out: dict[str, bytes] = {}
        flags = [name for name in _PIECE_FLAGS if getattr(self, name)]
        if self.text or not flags:
            out["text"] = self.text.encode()
        return out | dict.fromkeys(flags, b"1")

    @classmethod
    def decode(cls, fields: Fields) -> "TextPiece":
        """Read one entry.

        Raises:
            FieldError: The text is not UTF-8 or too long, or a flag is not 0 or 1.
        """
        text = f.text(fields, "text", MAX_TEXT) or ""
        return cls(text, **{name: f.flag(fields, name) for name in _PIECE_FLAGS})
