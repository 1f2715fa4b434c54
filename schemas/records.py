"""Records that people and orchestrators read: sessions, workers, models, dead letters."""

from typing import Final, Literal, TypeVar, get_args, get_origin

import msgspec

from voicefleet.schemas.audio import Reason
from voicefleet.schemas.fields import FieldError, Fields, excerpt

MAX_DEAD_LETTERS: Final = 10_000
"""So many dead letters are kept, the newest; the server may keep a few more."""

SessionState = Literal["queued", "speaking", "paused", "idle"]
WorkerState = Literal["starting", "ready", "draining"]


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``tts:session:{<S>}``: the session's newest turn and what it does now.

    ``first_audio_ms`` is the time from adding the request to its first frame; ``updated_ms`` is
    unix ms of the server's clock.
    """

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
    """``tts:worker:<name>``: one worker's capacity, load and heartbeat.

    ``started_ms`` and ``beat_ms`` are unix ms. ``models`` are the ids of the served models.
    ``first_audio_p50_ms``, ``first_audio_p95_ms`` and ``rtf`` (engine seconds per second of audio)
    cover recent turns. On a GPU ``vram_total_mb`` is its memory, ``vram_used_mb`` what the engines
    hold of it, and ``session_mb`` and ``voice_mb`` what one more session or voice costs, of the
    most expensive engine. ``faults`` names the models that failed and are not back yet:
    ``<model>: <reason>; <remedy>``, joined by `` | ``.
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
    """``tts:model:<model>``: what a served model can do.

    ``native_rate`` and ``sample_rates`` are in Hz. ``synthetic``: a test signal, no speech.
    """

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


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of ``tts:dead``: a request that no worker may try again, and why; never its text.

    ``entry`` is the request's id in the queue of ``model``. ``session`` is ``None`` where the
    request did not hold a valid one.
    """

    model: str
    entry: str
    session: str | None = None
    request: str
    reason: Reason
    error: str
    worker: str


Record = TypeVar("Record", SessionRecord, WorkerRecord, ModelRecord, DeadLetter)


def encode(record: SessionRecord | WorkerRecord | ModelRecord | DeadLetter) -> dict[str, str]:
    """The record's fields: lists joined by commas, booleans as 0 or 1, ``None`` left out."""
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
    """Read a record's fields. Unknown ones are ignored: newer workers may say more.

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
