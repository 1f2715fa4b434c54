"""A worker's configuration: the sections of ``configs/*.yaml``.

Every value has a default, an environment variable ``VOICEFLEET_<SECTION>_<KEY>`` and a flag
``--set section.key=value``. Unknown keys are refused (``worker.config.loading``).
"""

from typing import Annotated, Literal

from msgspec import Meta

from voicefleet.wire.endpoint import RedisConfig
from voicefleet.worker.engines.registry import EngineConfig
from voicefleet.worker.section import FilePath, Millis, Seconds, Section


class WorkerConfig(Section, frozen=True):
    """The worker process: what it serves and its time limits.

    ``slots`` 0 offers what the served engines can carry. ``lead_ms`` is how far ahead of real
    time frames are published where the request does not say. A turn whose engine makes no audio
    for ``synthesis_timeout_s`` fails, and is tried again; streamed text of more than
    ``max_stream_chars`` fails for good. A complete sentence of streamed text is spoken when no more
    has come for ``text_settle_ms`` (0: only when what follows, a flush or the end has come).
    When slots are scarce, sessions that spoke within ``conversation_s`` come before those of their
    tenant that did not.
    """

    name: str = ""
    models: tuple[str, ...] = ()
    slots: Annotated[int, Meta(ge=0, le=10_000)] = 0
    lead_ms: Annotated[int, Meta(ge=0, le=60_000)] = 400
    heartbeat_ms: Annotated[int, Meta(ge=50, le=1000)] = 500
    dead_after_ms: Annotated[int, Meta(ge=200, le=3000)] = 1500
    drain_timeout_s: Seconds = 10.0
    pause_timeout_s: Seconds = 300.0
    text_settle_ms: Millis = 250
    text_timeout_s: Seconds = 30.0
    audio_ttl_s: Seconds = 120.0
    audio_window_s: Seconds = 60.0
    resend_window_s: Seconds = 5.0
    synthesis_timeout_s: Seconds = 30.0
    max_stream_chars: Annotated[int, Meta(ge=1)] = 100_000
    max_waiting_turns: Annotated[int, Meta(ge=1, le=10_000)] = 64
    conversation_s: Annotated[float, Meta(ge=0)] = 30.0
    max_deliveries: Annotated[int, Meta(ge=1, le=100)] = 3


class ModelManagerConfig(Section, frozen=True):
    """Which models are in memory, and for how long.

    ``ttl_ms`` after its last turn an idle model is unloaded (0: never), but not before
    ``min_residency_ms`` after its load. At most ``resident_cap`` models are in memory at once.
    """

    voicepacks_dir: FilePath = ""
    default_model_id: str = ""
    preload_model_ids: tuple[str, ...] = ()
    ttl_ms: Millis = 0
    min_residency_ms: Millis = 10_000
    resident_cap: Annotated[int, Meta(ge=1)] = 4
    max_parallel_loads: Annotated[int, Meta(ge=1)] = 1
    warmup_enabled: bool = True
    warmup_text: str = "The quick brown fox jumps over the lazy dog."
    evict_check_interval_ms: Annotated[int, Meta(ge=10)] = 5_000


class AudioConfig(Section, frozen=True):
    """Loudness of what is published: BS.1770 target in LUFS, true-peak ceiling in dBTP."""

    target_lufs: Annotated[float, Meta(ge=-40, le=-6)] = -16.0
    true_peak_dbtp: Annotated[float, Meta(ge=-12, le=0)] = -1.0
    normalise: bool = True


class LoggingConfig(Section, frozen=True):
    """``text: true`` lets debug lines carry the text that is spoken; info lines never do."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"
    text: bool = False


class Config(Section, frozen=True):
    """All of a worker's configuration."""

    worker: WorkerConfig = WorkerConfig()
    model_manager: ModelManagerConfig = ModelManagerConfig()
    engine: EngineConfig = EngineConfig()
    audio: AudioConfig = AudioConfig()
    redis: RedisConfig = RedisConfig()
    logging: LoggingConfig = LoggingConfig()
