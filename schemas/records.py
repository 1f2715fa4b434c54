"""Records people and orchestrators read with HGETALL: sessions, workers, models."""

from typing import Literal, TypeVar, get_args, get_origin

import msgspec

from voicefleet.schemas.fields import FieldError, Fields, excerpt

SessionState = Literal["queued", "speaking", "paused", "idle"]
WorkerState = Literal["starting", "ready", "draining"]


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``tts:session:{<S>}``. ``first_audio_ms``: request added to first frame."""

    state: SessionState
    turn: int = 0
    request: str = ""
    model: str = ""
    voice: str = ""
    worker: str = ""
    frames: int = 0
    first_audio_ms: float | None = None
    updated_ms: int = 0


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """``tts:worker:<name>``. Times are unix ms in server time; ``models`` are the served ids.

    ``rtf`` is engine time per second of audio; the latency figures cover recent turns. Where the
    device is a GPU: its memory, the part of it that the engines hold, and what the costliest of
    them adds for each session and for each voice in use. ``faults`` says which models were lost
    and are not back yet, and why: ``<model>: <reason>; <what is done>``, joined by `` | ``.
    """

    state: WorkerState
    host: str
    pid: int
    version: str
    device: str
    models: tuple[str, ...]
    slots_total: int
    slots_free: int
    sessions: int
    started_ms: int = 0
    beat_ms: int = 0
    first_audio_p50_ms: float | None = None
    first_audio_p95_ms: float | None = None
    rtf: float | None = None
    vram_used_mb: int | None = None
    vram_total_mb: int | None = None
    session_mb: float | None = None
    voice_mb: float | None = None
    faults: str | None = None


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """``tts:model:<model>``: what a served model can do. ``native_rate`` is in Hz."""

    family: str
    version: str
    languages: tuple[str, ...]
    voices: tuple[str, ...]
    default_voice: str
    modes: tuple[str, ...]
    capabilities: tuple[str, ...]
    native_rate: int
    sample_rates: tuple[int, ...]
    synthetic: bool = False


Record = TypeVar("Record", SessionRecord, WorkerRecord, ModelRecord)


def encode(record: SessionRecord | WorkerRecord | ModelRecord) -> dict[str, str]:
    """A hash: lists are joined by commas, booleans are 0 or 1, absent values are left out."""
    out: dict[str, str] = {}
    for name, value in msgspec.structs.asdict(record).items():
        if value is None:
            continue
        if isinstance(value, bool):
            out[name] = str(int(value))
        elif isinstance(value, tuple):
            out[name] = ",".join(str(item) for item in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        elif isinstance(value, float):
            out[name] = f"{value:.4g}" if value < 1000 else f"{value:.0f}"
        else:
            out[name] = str(value)
    return out


def decode(kind: type[Record], fields: Fields) -> Record:
    """Read a hash. Unknown fields are ignored, so that newer workers can say more.

    Raises:
        FieldError: A field is missing or has another type.
    """
    known: dict[str, object] = {}
    for field in msgspec.structs.fields(kind):
        raw = fields.get(field.name.encode())
        if raw is None:
            if field.required:
                raise FieldError(field.name, "is missing")
            continue
        text = raw.decode("utf-8", "replace")
        is_list = get_origin(field.type) is tuple
        value = [item for item in text.split(",") if item] if is_list else text
        try:
            known[field.name] = msgspec.convert(value, field.type, strict=False)
        except msgspec.ValidationError:
            raise FieldError(field.name, f"{excerpt(text)} is not {_allowed(field.type)}") from None
    return msgspec.convert(known, kind)


def _allowed(kind: object) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    return "0 or 1" if kind is bool else "a number"
