"""The family ``cosyvoice2``: CosyVoice 2, by our own engine or through the official package."""

from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta

from voicefleet.worker.engines.family import EngineFamily, HostedSection
from voicefleet.worker.engines.hosting.core import Core, Emit
from voicefleet.worker.section import Seconds
from voicefleet.worker.voicepacks.voicepack import Voicepack


class CosyVoice2Config(HostedSection, frozen=True):
    """CosyVoice 2 in a process of its own.

    ``slots`` 0 offers what warm-up measured, at most ``max_slots``. Speech tokens come at 25 a
    second. ``max_ahead_s`` is how much audio a turn may be ahead of its listener. Of
    ``flow_cache_mb``, ``flow_batch``, ``threads`` and ``memory_limit_mb`` 0 leaves the choice to
    the engine. ``load_jit``, ``load_trt`` and ``load_vllm`` are upstream's own options:
    ``implementation: upstream`` alone has them.
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
    threads: Annotated[int, Meta(ge=0, le=256)] = 0
    first_chars: Annotated[int, Meta(ge=10, le=1_000)] = 80
    max_chars: Annotated[int, Meta(ge=20, le=2_000)] = 240
    memory_limit_mb: Annotated[int, Meta(ge=0)] = 0


def _core(pack: Voicepack, config: CosyVoice2Config, emit: Emit) -> Core:
    if config.implementation == "upstream":
        from voicefleet.worker.engines.cosyvoice2_upstream.core import build  # noqa: PLC0415
    else:
        from voicefleet.worker.engines.cosyvoice2.core import build  # noqa: PLC0415
    return build(pack, config, emit)


def _check(pack: Voicepack) -> list[str]:
    from voicefleet.worker.engines.cosyvoice2.pack import check  # noqa: PLC0415

    return check.check(pack.directory, pack.native_rate)


def _contradictions(config: CosyVoice2Config) -> Iterator[tuple[str, str]]:
    if config.first_chars > config.max_chars:
        yield "first_chars", f"is more than max_chars={config.max_chars}"
    if config.slots > config.max_slots:
        yield "slots", f"{config.slots} is more than max_slots={config.max_slots}"
    if config.device == "cpu":
        if config.cuda_graphs == "on":
            yield "cuda_graphs", "needs a GPU, but device is cpu"
        if config.dtype == "fp16":
            yield "dtype", "fp16 needs a GPU, but device is cpu"
        if config.compile:
            yield "compile", "needs CUDA graphs, but device is cpu"
        if config.llm_backend == "vllm":
            yield "llm_backend", "vllm needs a GPU, but device is cpu"
        if config.estimator_backend == "tensorrt":
            yield "estimator_backend", "tensorrt needs a GPU, but device is cpu"
    if config.upstream_exact and config.estimator_backend != "native":
        yield "upstream_exact", "needs estimator_backend=native: its last pass is not streamed"
    if config.upstream_exact and config.llm_backend != "native":
        yield "upstream_exact", "needs llm_backend=native"
    if config.text_streaming and config.llm_backend != "native":
        yield "text_streaming", "needs llm_backend=native"
    defaults = CosyVoice2Config()
    if config.implementation == "upstream":
        ours = ("first_chunk_tokens", "flow_cache_mb", "flow_batch", "cuda_graphs", "compile",
                "llm_backend", "estimator_backend", "text_streaming", "upstream_exact")  # fmt: skip
        for key in ours:
            if getattr(config, key) != getattr(defaults, key):
                yield key, "needs implementation=native"
        if config.dtype == "bf16":
            yield "dtype", "bf16 needs implementation=native"
    else:
        for key in ("load_jit", "load_trt", "load_vllm"):
            if getattr(config, key):
                yield key, "needs implementation=upstream"


FAMILY = EngineFamily(
    name="cosyvoice2",
    config=CosyVoice2Config,
    core=_core,
    slots=lambda config: config.slots or 1,  # 0: warm-up finds out
    contradictions=_contradictions,
    check=_check,
    requires=("torch", "onnxruntime", "safetensors", "tokenizers", "soundfile"),
    extra="cosyvoice",
)
