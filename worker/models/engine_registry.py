"""Which engine speaks a model: routed by the family of its voicepack."""

from collections.abc import Callable

from voicefleet.worker.config.sections import CosyVoice2Config, EngineConfig
from voicefleet.worker.engines.protocol import CannotSpeakError, Engine
from voicefleet.worker.voicepacks.voicepack import Voicepack


class UnknownModelError(CannotSpeakError):
    """Nobody here speaks such a model. The message names the ones that can be had."""


EngineFactory = Callable[[Voicepack, EngineConfig], Engine]
"""Makes an engine for a pack, not loaded yet."""


def _tone(pack: Voicepack, config: EngineConfig) -> Engine:
    from voicefleet.worker.engines.tone.engine import ToneEngine  # noqa: PLC0415

    return ToneEngine(pack, config.tone)


def _piper(pack: Voicepack, config: EngineConfig) -> Engine:
    from voicefleet.worker.engines.piper.engine import PiperEngine  # noqa: PLC0415

    return PiperEngine(pack, config.piper)


def _cosyvoice2(pack: Voicepack, config: EngineConfig) -> Engine:
    from voicefleet.worker.engines.hosting.engine import HostedEngine  # noqa: PLC0415

    section = config.cosyvoice2
    return HostedEngine(
        pack,
        cosyvoice2_core(section),
        section,
        synthesis_timeout_s=section.synthesis_timeout_s,
        load_timeout_s=section.load_timeout_s,
    )


def cosyvoice2_core(config: CosyVoice2Config) -> str:
    """The core that speaks CosyVoice 2 as configured (``worker.engines.hosting.cores``)."""
    return {"native": "cosyvoice2", "upstream": "cosyvoice2-upstream"}[config.implementation]


# Engines are imported when first asked for: a worker pays only for those that it runs.
_FACTORIES: dict[str, EngineFactory] = {
    "tone": _tone,
    "piper": _piper,
    "cosyvoice2": _cosyvoice2,
}


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


def build_in_process(pack: Voicepack, config: EngineConfig) -> Engine:
    """``build``, but in no other process than this, where profilers see it. Not for a worker."""
    from voicefleet.worker.engines.hosting.in_process import InProcessEngine  # noqa: PLC0415

    if pack.family == "cosyvoice2":
        return InProcessEngine(pack, cosyvoice2_core(config.cosyvoice2), config.cosyvoice2)
    return build(pack, config)


def slots_of(pack: Voicepack, config: EngineConfig) -> int:
    """How many turns an engine of the pack speaks at once, as configured.

    Where that is measured at the load, one until then: the turn that has it loaded.
    """
    return {
        "tone": config.tone.slots,
        "piper": config.piper.slots,
        "cosyvoice2": config.cosyvoice2.slots or 1,
    }[pack.family]
