"""The family ``piper``: VITS voices on ONNX Runtime, on the CPU."""

from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from voicefleet.worker.engines.family import EngineFamily
from voicefleet.worker.engines.protocol import Engine
from voicefleet.worker.section import Section
from voicefleet.worker.voicepacks.voicepack import Voicepack


class PiperConfig(Section, frozen=True):
    """Piper on ONNX Runtime. ``threads`` one-thread inferences run side by side (0: one a core)."""

    slots: Annotated[int, Meta(ge=1, le=1_000)] = 8
    threads: Annotated[int, Meta(ge=0, le=256)] = 0
    first_chars: Annotated[int, Meta(ge=10, le=1_000)] = 60
    max_chars: Annotated[int, Meta(ge=20, le=2_000)] = 200


def _engine(pack: Voicepack, config: PiperConfig) -> Engine:
    from voicefleet.worker.engines.piper.engine import PiperEngine  # noqa: PLC0415

    return PiperEngine(pack, config)


def _contradictions(config: PiperConfig) -> Iterator[tuple[str, str]]:
    if config.first_chars > config.max_chars:
        yield "first_chars", f"is more than max_chars={config.max_chars}"


class _Audio(msgspec.Struct, frozen=True):
    sample_rate: int | None = None


class _VoiceConfig(msgspec.Struct, frozen=True):
    audio: _Audio = _Audio()


def _check(pack: Voicepack) -> Iterator[str]:
    """Compare the promised rate with what the voice's own JSON says, where it says it."""
    if "config" not in pack.source.files:
        return
    path = pack.file("config")
    try:
        rate = msgspec.json.decode(path.read_bytes(), type=_VoiceConfig).audio.sample_rate
    except (OSError, msgspec.DecodeError):
        return
    if rate not in (None, pack.native_rate):
        yield f"{pack.model_id}: native_rate is {pack.native_rate} Hz, but {path} says {rate} Hz"


FAMILY = EngineFamily(
    name="piper",
    config=PiperConfig,
    engine=_engine,
    slots=lambda config: config.slots,
    contradictions=_contradictions,
    check=_check,
    requires=("piper-tts", "onnxruntime"),
    extra="piper",
)
