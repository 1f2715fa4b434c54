"""The family ``morse``: what a worker knows about it before it loads a model."""

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from voicefleet.worker.engines.family import EngineFamily
from voicefleet.worker.engines.protocol import Engine
from voicefleet.worker.section import Section
from voicefleet.worker.voicepacks.voicepack import Voicepack


class MorseConfig(Section, frozen=True):
    """The section ``engine.morse``.

    Signs are sent at ``wpm`` words a minute. The gaps between letters and words are those of
    ``effective_wpm``, so that learners have time to think (Farnsworth timing).
    """

    slots: Annotated[int, Meta(ge=1, le=1_000)] = 8
    wpm: Annotated[float, Meta(ge=5, le=60)] = 20.0
    effective_wpm: Annotated[float, Meta(ge=5, le=60)] = 20.0
    pitch_hz: Annotated[float, Meta(ge=200, le=2_000)] = 600.0


def _engine(pack: Voicepack, config: MorseConfig) -> Engine:
    from voicefleet_morse.engine import MorseEngine  # noqa: PLC0415 imported by those who speak it

    return MorseEngine(pack, config)


def _contradictions(config: MorseConfig) -> Iterator[tuple[str, str]]:
    if config.effective_wpm > config.wpm:
        yield "effective_wpm", f"is more than wpm={config.wpm:g}"


def _check(pack: Voicepack) -> Iterator[str]:
    from voicefleet_morse.engine import read_alphabet  # noqa: PLC0415

    path = pack.file("alphabet")
    if missing := sorted(set("abcdefghijklmnopqrstuvwxyz0123456789") - read_alphabet(path).keys()):
        yield f"{pack.model_id}: {path} has no signs for {' '.join(missing)}"


FAMILY = EngineFamily(
    name="morse",
    config=MorseConfig,
    engine=_engine,
    slots=lambda config: config.slots,
    contradictions=_contradictions,
    check=_check,
    requires=("numpy",),
)
