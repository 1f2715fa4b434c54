"""A model's engine without a worker: loaded for the length of a block, without Redis."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio

from voicefleet.worker.config.sections import Config
from voicefleet.worker.engines import registry
from voicefleet.worker.engines.protocol import Engine
from voicefleet.worker.engines.registry import UnknownModelError
from voicefleet.worker.models.loaded_model import LoadedModel
from voicefleet.worker.voicepacks import voicepack
from voicefleet.worker.voicepacks.voicepack import Voicepack


def pack_of(config: Config) -> Voicepack:
    """The voicepack of the configured default model, or of the first that is served.

    Raises:
        UnknownModelError: No model is configured, or it has no voicepack.
    """
    manager = config.model_manager
    packs = voicepack.discover(voicepack.default_directory(manager.voicepacks_dir))
    named = (manager.default_model_id, *config.worker.models)
    model = next((name for name in named if name), "")
    if model not in packs:
        raise UnknownModelError(f"unknown model {model!r}; the voicepacks are {', '.join(packs)}")
    return packs[model]


@asynccontextmanager
async def loaded(
    pack: Voicepack, config: Config, *, in_process: bool = False
) -> AsyncGenerator[Engine]:
    """The pack's engine, loaded for the length of the block; not warmed up.

    Args:
        pack: The model's.
        config: A worker's.
        in_process: Run the engine in this process and no other, for profilers.

    Raises:
        EngineLoadError: It could not be loaded.
        UnknownModelError: No engine speaks such models.
    """
    build = registry.build_in_process if in_process else registry.build
    engine = build(pack, config.engine)
    try:
        await engine.load()
        yield engine
    finally:
        with anyio.CancelScope(shield=True):
            await engine.unload()


async def gain_of(voice: str, pack: Voicepack, config: Config) -> float:
    """The linear gain that brings a voice to the configured loudness, measured by speaking.

    Raises:
        EngineError: The model could not be loaded or could not speak.
    """
    async with loaded(pack, config) as engine:
        await engine.warm_up(config.model_manager.warmup_text)
        return await LoadedModel(engine, pack, config.audio).gain(voice)
