"""Load a voicepack's model onto its device: weights, caches, backends, voices."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from voicefleet.worker.engines.cosyvoice2 import budget, devices
from voicefleet.worker.engines.cosyvoice2.backends import (
    requirements,
    tensorrt_estimator,
    vllm_decoder,
)
from voicefleet.worker.engines.cosyvoice2.backends.compiling import CompiledGraphs
from voicefleet.worker.engines.cosyvoice2.backends.recomputing import (
    RecomputingRenderer,
    RecomputingStage,
)
from voicefleet.worker.engines.cosyvoice2.budget import Budget
from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.family import CosyVoice2Config
from voicefleet.worker.engines.cosyvoice2.flow.blocks import BlockRenderer
from voicefleet.worker.engines.cosyvoice2.graphs import Graphs
from voicefleet.worker.engines.cosyvoice2.lm.decoding import Decoder
from voicefleet.worker.engines.cosyvoice2.model_runner import ModelRunner
from voicefleet.worker.engines.cosyvoice2.pack import checkpoint, model_yaml
from voicefleet.worker.engines.cosyvoice2.rendering import BlockStage
from voicefleet.worker.engines.cosyvoice2.text.frontend import TextFrontend
from voicefleet.worker.engines.cosyvoice2.text.tokenizer import TextTokenizer
from voicefleet.worker.engines.cosyvoice2.upstream_exact import UpstreamExactStage
from voicefleet.worker.engines.cosyvoice2.vocoding import VocoderStage
from voicefleet.worker.engines.cosyvoice2.voices import catalogue
from voicefleet.worker.engines.cosyvoice2.voices.speaker import Speakers
from voicefleet.worker.engines.cosyvoice2.voices.voice import aligned
from voicefleet.worker.voicepacks.voicepack import Voicepack

Timed = Callable[[str], AbstractContextManager[None]]


def load(pack: Voicepack, config: CosyVoice2Config, timed: Timed) -> ModelRunner:
    """Load a pack. Raises ``CosyVoiceInitializationError``."""
    device = devices.select(config.device)
    dtype = devices.dtype_of(config.dtype, device)
    requirements.check(config, device, dtype)
    devices.limit_memory(device, config.memory_limit_mb)
    devices.configure(device, dtype, config.threads)
    directory = pack.directory
    with timed("configuration"):
        sizes = model_yaml.read(directory / "cosyvoice2.yaml")
        frontend = TextFrontend(TextTokenizer(directory / "CosyVoice-BlankEN"))
        voices = catalogue.voices(pack)
        if not config.upstream_exact:
            first = config.first_chunk_tokens
            voices = {name: aligned(voice, first) for name, voice in voices.items()}
    with timed("weights"):
        model = checkpoint.load(directory, sizes, dtype, device)
    with timed("caches"):
        shares = budget.plan(sizes, config, dtype, device, budget.free_memory(device)[0])
        graphs = _graphs(config, device)
        if config.llm_backend == "vllm":
            slots, positions = shares.slots, shares.positions
            decoder = vllm_decoder.build(
                directory, model.language_model, slots, positions, config, device
            )
            # vLLM takes more than its cache: plan again with the memory that is left.
            shares = budget.plan(sizes, config, dtype, device, budget.free_memory(device)[0])
        else:
            decoder = Decoder(
                model.language_model, shares.slots, shares.positions, budget.MAX_TOKENS, graphs
            )
        if config.estimator_backend == "tensorrt":
            frames = shares.max_blocks * sizes.flow.estimator.chunk
            native = model.flow.decoder.estimator
            backend = tensorrt_estimator.build(directory, native, frames)
            model.flow.decoder.register_module("estimator", backend)
            shares = replace(shares, page_bytes=0)
        audio = _audio(model, config, shares, graphs)
        speakers = Speakers(voices, audio.prepare, audio.release)
        audio.evict = speakers.evict
    return ModelRunner(
        pack=pack,
        config=config,
        sizes=sizes,
        device=device,
        budget=shares,
        decoder=decoder,
        audio=audio,
        frontend=frontend,
        speakers=speakers,
        voices=voices,
        offered=shares.slots,
    )


def _audio(
    model: checkpoint.Model, config: CosyVoice2Config, shares: Budget, graphs: Graphs
) -> BlockStage | UpstreamExactStage:
    if config.upstream_exact:
        return UpstreamExactStage(model.flow, model.vocoder)
    if config.estimator_backend == "tensorrt":
        renderer = RecomputingRenderer(model.flow, max_blocks=shares.max_blocks)
        vocoder = VocoderStage(model.vocoder, shares.batches, graphs)
        return RecomputingStage(renderer, vocoder, shares.batches, graphs)
    renderer = BlockRenderer(
        model.flow, pages=shares.pages, states=shares.states, max_blocks=shares.max_blocks
    )
    vocoder = VocoderStage(model.vocoder, shares.batches, graphs)
    return BlockStage(renderer, vocoder, shares.batches, graphs)


def _graphs(config: CosyVoice2Config, device: torch.device) -> Graphs:
    on_cuda = device.type == "cuda"
    if config.cuda_graphs == "on" and not on_cuda:
        raise CosyVoiceInitializationError(f"cuda_graphs: on needs a CUDA device, not {device}")
    enabled = on_cuda and config.cuda_graphs != "off"
    return CompiledGraphs(enabled=enabled) if config.compile else Graphs(enabled=enabled)
