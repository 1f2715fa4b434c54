"""A worker's configuration: the sections of ``configs/*.yaml``.

Every value has a default, an environment variable ``VOICEFLEET_<SECTION>_<KEY>`` and a flag
``--set section.key=value``. Unknown keys are refused (``worker.config.loading``).
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from voicefleet.wire.endpoint import RedisConfig

Millis = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A section of the file: immutable, and strict about its keys."""


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

    voicepacks_dir: str = ""
    default_model_id: str = ""
    preload_model_ids: tuple[str, ...] = ()
    ttl_ms: Millis = 0
    min_residency_ms: Millis = 10_000
    resident_cap: Annotated[int, Meta(ge=1)] = 4
    max_parallel_loads: Annotated[int, Meta(ge=1)] = 1
    warmup_enabled: bool = True
    warmup_text: str = "The quick brown fox jumps over the lazy dog."
    evict_check_interval_ms: Annotated[int, Meta(ge=10)] = 5_000


class ToneConfig(Section, frozen=True):
    """The synthetic engine: ``rtf`` is compute time per second of audio, simulated by waiting."""

    slots: Annotated[int, Meta(ge=1, le=10_000)] = 16
    rtf: Annotated[float, Meta(ge=0, le=10)] = 0.0
    latency_ms: Annotated[float, Meta(ge=0, le=60_000)] = 0.0
    chunk_ms: Annotated[int, Meta(ge=20, le=2_000)] = 200


class PiperConfig(Section, frozen=True):
    """Piper on ONNX Runtime. ``threads`` one-thread inferences run side by side (0: one a core)."""

    slots: Annotated[int, Meta(ge=1, le=1_000)] = 8
    threads: Annotated[int, Meta(ge=0, le=256)] = 0
    first_chars: Annotated[int, Meta(ge=10, le=1_000)] = 60
    max_chars: Annotated[int, Meta(ge=20, le=2_000)] = 200


class CosyVoice2Config(Section, frozen=True):
    """CosyVoice 2 in a process of its own.

    ``slots`` 0 offers what warm-up measured, at most ``max_slots``. Speech tokens come at 25 a
    second. ``max_ahead_s`` is how much audio a turn may be ahead of its listener. Of
    ``flow_cache_mb``, ``flow_batch``, ``threads`` and ``memory_limit_mb`` 0 leaves the choice to
    the engine. ``load_jit``, ``load_trt`` and ``load_vllm`` are upstream's own options:
    ``implementation: upstream`` alone has them. Silent for ``synthesis_timeout_s`` its process
    counts as hung; ``load_timeout_s`` is the limit of a load, and of a warm-up.
    """

    implementation: Literal["native", "upstream"] = "native"
    device: Annotated[str, Meta(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$")] = "auto"
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    slots: Annotated[int, Meta(ge=0, le=1_000)] = 0
    max_slots: Annotated[int, Meta(ge=1, le=1_000)] = 64
    first_chunk_tokens: Annotated[int, Meta(ge=12, le=25)] = 20
    max_ahead_s: Seconds = 3.0
    flow_cache_mb: Annotated[int, Meta(ge=0)] = 0
    flow_batch: Annotated[int, Meta(ge=0, le=1_000)] = 0
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    compile: bool = False
    llm_backend: Literal["native", "vllm"] = "native"
    estimator_backend: Literal["native", "tensorrt"] = "native"
    text_streaming: bool = False
    upstream_exact: bool = False
    load_jit: bool = False
    load_trt: bool = False
    load_vllm: bool = False
    synthesis_timeout_s: Annotated[float, Meta(ge=1)] = 5.0
    load_timeout_s: Seconds = 120.0
    threads: Annotated[int, Meta(ge=0, le=256)] = 0
    first_chars: Annotated[int, Meta(ge=10, le=1_000)] = 80
    max_chars: Annotated[int, Meta(ge=20, le=2_000)] = 240
    memory_limit_mb: Annotated[int, Meta(ge=0)] = 0


class EngineConfig(Section, frozen=True):
    """One section for each engine family."""

    tone: ToneConfig = ToneConfig()
    piper: PiperConfig = PiperConfig()
    cosyvoice2: CosyVoice2Config = CosyVoice2Config()


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
