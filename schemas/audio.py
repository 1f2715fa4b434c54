"""Entries of a session's audio stream ``tts:audio:{<S>}`` and their ids."""

from typing import Final, Literal, get_args

import msgspec

from voicefleet.schemas import fields as f
from voicefleet.schemas.fields import FieldError, Fields

FRAME_MS: Final = 20
FRAMES_PER_S: Final = 1000 // FRAME_MS
FORMAT: Final = "s16le"
BYTES_PER_SAMPLE: Final = 2
CHANNELS: Final = 1

Reason = Literal["completed", "stopped", "interrupted", "expired", "rejected", "failed"]
"""Why a turn ended."""

REASONS: Final[tuple[Reason, ...]] = get_args(Reason)


def samples_per_frame(sample_rate: int) -> int:
    """Samples in one frame."""
    return sample_rate // FRAMES_PER_S


def bytes_per_frame(sample_rate: int) -> int:
    """Bytes of one frame's PCM: 1920 at 48 kHz."""
    return samples_per_frame(sample_rate) * BYTES_PER_SAMPLE * CHANNELS


class EntryId(msgspec.Struct, frozen=True, order=True):
    """``<turn>-<n>``: turns count from 1; n is 0 for the start and N + 1 for the end."""

    turn: int
    n: int

    def __str__(self) -> str:
        return f"{self.turn}-{self.n}"

    @classmethod
    def parse(cls, raw: bytes | str) -> "EntryId":
        """Read ``<turn>-<n>``. Raises ``ValueError`` when it is not that."""
        turn, dash, n = (raw.decode("ascii") if isinstance(raw, bytes) else raw).partition("-")
        # isdecimal alone admits other scripts' digits; int() alone admits "1_0" and " 1".
        if not (dash and turn.isdecimal() and n.isdecimal() and turn.isascii() and n.isascii()):
            raise ValueError("not <turn>-<n>")
        return cls(int(turn), int(n))


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Opens a spoken turn and says what its frames are.

    ``sample_rate`` is in Hz, ``t`` in unix ms of the server's clock. Within protocol version 1
    ``frame_ms``, ``format`` and ``channels`` are always 20, ``s16le`` and 1.
    """

    id: EntryId
    request: str
    model: str
    voice: str
    worker: str
    sample_rate: int
    frame_ms: int = FRAME_MS
    format: str = FORMAT
    channels: int = CHANNELS
    t: int


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """20 ms of signed 16-bit little-endian mono PCM, ``(id.n - 1) * 20`` ms after its turn began.

    ``text`` is the part of the text whose speech begins in this frame, ``None`` if none does.
    """

    id: EntryId
    pcm: bytes
    text: str | None = None


class End(msgspec.Struct, frozen=True, kw_only=True):
    """Closes a turn of ``frames`` frames.

    ``error`` says why the turn failed, was rejected, or was stopped by a time limit. ``t`` is in
    unix ms of the server's clock.
    """

    id: EntryId
    request: str
    reason: Reason
    frames: int
    error: str | None = None
    t: int


AudioEntry = Start | Frame | End


def decode(entry: bytes | str, fields: Fields) -> AudioEntry:
    """Read one entry of an audio stream.

    Raises:
        FieldError: It is none of the protocol's three kinds.
    """
    try:
        entry_id = EntryId.parse(entry)
    except ValueError:
        raise FieldError("id", "is not <turn>-<n>") from None
    pcm = fields.get(b"pcm")
    if pcm is not None:
        return Frame(id=entry_id, pcm=pcm, text=f.text(fields, "text"))
    event = f.choice(fields, "event", ("start", "end"))
    request = f.text(fields, "request") or ""
    t = f.integer(fields, "t", 0, 2**63 - 1) or 0
    if event == "start":
        return Start(
            id=entry_id,
            request=request,
            model=f.text(fields, "model") or "",
            voice=f.text(fields, "voice") or "",
            worker=f.text(fields, "worker") or "",
            sample_rate=f.integer(fields, "sample_rate", 1, 2**31) or 0,
            frame_ms=f.integer(fields, "frame_ms", 1, 1000) or FRAME_MS,
            format=f.text(fields, "format") or FORMAT,
            channels=f.integer(fields, "channels", 1, 256) or CHANNELS,
            t=t,
        )
    if event == "end":
        reason = f.choice(fields, "reason", REASONS)
        if reason is None:
            raise FieldError("reason", "is missing")
        return End(
            id=entry_id,
            request=request,
            reason=msgspec.convert(reason, Reason),
            frames=f.integer(fields, "frames", 0, 2**63 - 1) or 0,
            error=f.text(fields, "error"),
            t=t,
        )
    raise FieldError("event", "is missing: neither a frame nor a start nor an end")
