"""Which engine speaks a model: routed by the family of its voicepack."""

from collections.abc import Callable

from worker.config import EngineConfig
from worker.engines.protocol import CannotSpeakError, Engine
from worker.voicepacks import Voicepack


class UnknownModelError(CannotSpeakError):
    """Nobody here speaks such a model. The message names the ones that can be had."""


EngineFactory = Callable[[Voicepack, EngineConfig], Engine]
"""Makes an engine for a pack, not loaded yet."""


def _tone(pack: Voicepack, config: EngineConfig) -> Engine:
    from worker.engines.tone import ToneEngine  # noqa: PLC0415

    return ToneEngine(pack, config.tone)


def _piper(pack: Voicepack, config: EngineConfig) -> Engine:
    from worker.engines.piper import PiperEngine  # noqa: PLC0415

    return PiperEngine(pack, config.piper)


# Engines are imported when first asked for: a worker pays only for those that it runs.
_FACTORIES: dict[str, EngineFactory] = {"tone": _tone, "piper": _piper}


def build(pack: Voicepack, config: EngineConfig) -> Engine:
    """An engine for the pack, not loaded yet.

    Raises:
        UnknownModelError: No engine speaks models of this family.
    """
    factory = _FACTORIES.get(pack.family)
    if factory is None:
        known = ", ".join(f"{family}-*" for family in sorted(_FACTORIES))
        raise UnknownModelError(f"no engine speaks {pack.model_id!r}; engines speak {known}")
    return factory(pack, config)


def slots_of(pack: Voicepack, config: EngineConfig) -> int:
    """How many turns an engine of the pack speaks at once, as configured."""
    return {"tone": config.tone.slots, "piper": config.piper.slots}[pack.family]
