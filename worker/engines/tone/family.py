"""The family ``tone``: a test signal, for load tests and trials without a model."""

from typing import Annotated

from msgspec import Meta

from voicefleet.worker.engines.family import EngineFamily
from voicefleet.worker.engines.protocol import Engine
from voicefleet.worker.section import Section
from voicefleet.worker.voicepacks.voicepack import Voicepack


class ToneConfig(Section, frozen=True):
    """The synthetic engine: ``rtf`` is compute time per second of audio, simulated by waiting."""

    slots: Annotated[int, Meta(ge=1, le=10_000)] = 16
    rtf: Annotated[float, Meta(ge=0, le=10)] = 0.0
    latency_ms: Annotated[float, Meta(ge=0, le=60_000)] = 0.0
    chunk_ms: Annotated[int, Meta(ge=20, le=2_000)] = 200


def _engine(pack: Voicepack, config: ToneConfig) -> Engine:
    from voicefleet.worker.engines.tone.engine import ToneEngine  # noqa: PLC0415

    return ToneEngine(pack, config)


FAMILY = EngineFamily(
    name="tone", config=ToneConfig, engine=_engine, slots=lambda config: config.slots
)
