"""A voicepack's model, loaded: all that the loop works with."""

import resource
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import structlog
import torch
from torch import Tensor

from voicefleet.worker.config.sections import CosyVoice2Config
from voicefleet.worker.engines.cosyvoice2 import budget, devices
from voicefleet.worker.engines.cosyvoice2.attention import AttentionCensus
from voicefleet.worker.engines.cosyvoice2.backends import (
    requirements,
    tensorrt_estimator,
    vllm_decoder,
)
from voicefleet.worker.engines.cosyvoice2.backends.compiling import CompiledGraphs
from voicefleet.worker.engines.cosyvoice2.backends.interfaces import TokenSource
from voicefleet.worker.engines.cosyvoice2.backends.recomputing import WholeRenderer, WholeStage
from voicefleet.worker.engines.cosyvoice2.budget import MIB, Budget, Speed
from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.exact import ExactStage
from voicefleet.worker.engines.cosyvoice2.flow.blocks import BlockRenderer
from voicefleet.worker.engines.cosyvoice2.graphs import Graphs
from voicefleet.worker.engines.cosyvoice2.hyperparameters import Hyperparameters
from voicefleet.worker.engines.cosyvoice2.lm import sampling
from voicefleet.worker.engines.cosyvoice2.lm.decoding import Decoder
from voicefleet.worker.engines.cosyvoice2.lm.interleave import Interleave, Kind
from voicefleet.worker.engines.cosyvoice2.pack import checkpoint, model_yaml
from voicefleet.worker.engines.cosyvoice2.rendering import BlockStage
from voicefleet.worker.engines.cosyvoice2.session import Session, Utterance
from voicefleet.worker.engines.cosyvoice2.text.frontend import TextFrontend
from voicefleet.worker.engines.cosyvoice2.text.tokenizer import TextTokenizer
from voicefleet.worker.engines.cosyvoice2.transfer import to_device
from voicefleet.worker.engines.cosyvoice2.vocoding import VocoderStage
from voicefleet.worker.engines.cosyvoice2.voices import catalogue
from voicefleet.worker.engines.cosyvoice2.voices.speaker import (
    CROSS_LINGUAL,
    INSTRUCT,
    SFT,
    ZERO_SHOT,
    Speakers,
    modes_of,
)
from voicefleet.worker.engines.cosyvoice2.voices.voice import Voice, aligned
from voicefleet.worker.engines.protocol import EngineInfo, EngineMemory, SegmentLimits
from voicefleet.worker.voicepacks.voicepack import Voicepack

log = structlog.get_logger()

LEAST, MOST = 2, 20
"""Speech tokens for each text token, as upstream bounds them."""

STREAMED_LIMITS = SegmentLimits(first_chars=16, max_chars=24)
"""Characters: a few words, for the model reads five tokens at a time."""

MEASURED, MEASURED_S = 3, 0.3

Timed = Callable[[str], AbstractContextManager[None]]


@dataclass
class Loaded:
    """The parts, and what of them depends on several."""

    pack: Voicepack
    config: CosyVoice2Config
    sizes: Hyperparameters
    device: torch.device
    budget: Budget
    decoder: TokenSource
    audio: BlockStage | ExactStage
    frontend: TextFrontend
    speakers: Speakers
    voices: dict[str, Voice]
    offered: int
    step_s: float = 0.0
    batch_s: float = 0.0
    speed: Speed | None = None

    @property
    def info(self) -> EngineInfo:
        """What the model can do now."""
        modes = {mode for voice in self.voices.values() for mode in modes_of(voice)}
        return EngineInfo(
            native_rate=self.sizes.sample_rate,
            slots=self.offered,
            voices=self.speakers.names,
            default_voice=self.pack.default_voice or self.speakers.names[0],
            languages=self.pack.languages,
            modes=tuple(m for m in (ZERO_SHOT, CROSS_LINGUAL, INSTRUCT, SFT) if m in modes),
            capabilities=self.pack.capabilities,
            limits=SegmentLimits(self.config.first_chars, self.config.max_chars),
            streamed_limits=STREAMED_LIMITS if self.config.text_streaming else None,
            device=str(self.device),
            memory_mb=self.pack.memory_mb,
            memory=self._memory(),
            gains={name: v.gain for name, v in self.voices.items() if v.gain is not None},
            capacity=budget.explained(self.budget, self.speed, self.sizes, self._offer),
            synthetic=self.pack.synthetic,
        )

    @property
    def _offer(self) -> str:
        why = "as configured" if self.config.slots else "the least of what bounds them"
        return f"{self.offered} slots, {why}"

    def room(self, prompt: int) -> int:
        """Speech tokens that an utterance may have behind ``prompt`` positions."""
        # Two more positions: the start and the task.
        return min(budget.MAX_TOKENS, self.budget.positions - prompt - 2)

    def tokens_of_text(self, tokens: int) -> tuple[int, int]:
        """The fewest and the most speech tokens for so many of text."""
        return LEAST * tokens, MOST * tokens

    def read(self, session: Session, utterance: Utterance) -> None:
        """Read an utterance's beginning into the session's slot of the decoder."""
        slot, told = session.slot, session.conditioning
        draws = sampling.draws(session.spec.seed, utterance.number, utterance.max_tokens)
        self.decoder.begin(slot, draws)
        self.decoder.rule(slot, quiet_until=utterance.min_tokens, mute=(True, False, False))
        text = to_device([*told.text, *utterance.text], self.device)
        speech = to_device(told.speech, self.device)
        self.decoder.read(slot, self.decoder.model.sequence(text, speech))

    def interleave(self, session: Session) -> Interleave:
        """The reading order of an utterance whose text is being written."""
        told = session.conditioning
        return Interleave(told.text, told.speech, self.sizes.language_model.mix)

    def begin(self, session: Session, utterance: Utterance) -> None:
        """Make the session's slot ready for an utterance whose text is being written."""
        draws = sampling.draws(session.spec.seed, utterance.number, budget.MAX_TOKENS)
        self.decoder.begin(session.slot, draws)

    def read_on(self, session: Session, utterance: Utterance) -> bool:
        """Read what there is of its text. Returns whether decoding can go on."""
        assert utterance.streamed is not None
        slot, model = session.slot, self.decoder.model
        reading = utterance.streamed.interleave.next(self.decoder.count(slot))
        if reading is None:
            return False
        # While text is to come, only a fill token stops; then, only the end. A synthetic model
        # is stopped from outside.
        mute = (self.pack.synthetic, True, True) if reading.final else (True, True, False)
        forever = budget.MAX_TOKENS + 1
        self.decoder.rule(slot, quiet_until=forever, mute=mute, fill_at=reading.fill_at)
        parts: list[Tensor] = []
        for kind, ids in reading.parts:
            tokens = to_device(ids, self.device)
            match kind:
                case Kind.START:
                    parts.append(model.start())
                case Kind.TASK:
                    parts.append(model.task())
                case Kind.TEXT:
                    parts.append(model.text(tokens))
                case Kind.SPEECH:
                    parts.append(model.speech(tokens))
        self.decoder.read(slot, torch.cat(parts))
        return True

    def fills(self, tokens: int) -> int:
        """Fill tokens among so many decoded ones, at most."""
        return tokens // self.sizes.language_model.mix[1] + 1

    def speech_of(self, text_tokens: int) -> int:
        """About where in its speech a text of so many tokens has been spoken."""
        mix = self.sizes.language_model.mix
        return text_tokens * mix[1] // mix[0]

    def warm_up(self) -> None:
        """Capture all that can come: a capture makes everybody wait who listens."""
        # A compiler would have to look through the census.
        census = nullcontext() if self.config.compile else AttentionCensus()
        with census:
            self.decoder.warm_up(self.budget.positions)
            longest = max(map(self._prompt_blocks, self.voices.values()))
            self.audio.warm_up(longest + budget.BLOCKS_PER_SLOT)
        if isinstance(census, AttentionCensus):
            log.debug("attention_kernels", **census.shapes)

    def preload(self) -> None:
        """Prepare voices, the default one first, as many as there is room planned for.

        A voice's blocks depend on each other: whoever is the first to speak with one that was not
        prepared makes all others wait for them, one after another.
        """
        default = self.info.default_voice
        room = self.budget.prompt_pages
        for name in (default, *(other for other in self.voices if other != default)):
            blocks = self._prompt_blocks(self.voices[name])
            if name == default or blocks <= room:
                self.speakers.keep(name)
                room -= blocks

    def measure(self) -> None:
        """Find out how many sessions the device keeps from running dry."""
        self.step_s = self._time(self.decoder.rehearse)
        if isinstance(self.audio, ExactStage):
            self.offered = self.config.slots or 1
            return
        rows = self.audio.batch
        self.batch_s = self._time(lambda: self.audio.rehearse(rows))
        encoder = self.sizes.flow.encoder
        self.speed = Speed(
            step_s=self.step_s,
            batch_s=self.batch_s,
            rows=rows,
            token_rate=self.sizes.token_rate,
            block_s=encoder.chunk / self.sizes.token_rate,
        )
        if not self.config.slots:
            self.offered = min(self.budget.slots, self.speed.sessions)

    def burst(self, seconds: float, longest: int) -> int:
        """Steps of decoding that take about so long."""
        return max(1, min(longest, int(seconds / max(self.step_s, 1e-6))))

    def batch(self, seconds: float) -> int:
        """Utterances that are rendered together in about so long, were each to cost the same."""
        rows = self.audio.batch
        return max(1, min(rows, int(rows * seconds / max(self.batch_s, 1e-6))))

    def shrink(self) -> None:
        """Take less memory: there was not enough."""
        self.offered = max(1, self.offered - 1)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _time(self, work: Callable[[], object]) -> float:
        """The least of a few runs, in seconds; of one, where it takes long."""
        times: list[float] = []
        while len(times) < MEASURED and sum(times) < MEASURED_S:
            begun = time.monotonic()
            work()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append(time.monotonic() - begun)
        return min(times)

    def _prompt_blocks(self, voice: Voice) -> int:
        """Blocks that are kept of a voice."""
        encoder = self.sizes.flow.encoder
        return max(0, len(voice.flow_tokens) - encoder.lookahead) // encoder.chunk

    def _memory(self) -> EngineMemory:
        if self.device.type == "cuda":
            used = torch.cuda.memory_reserved(self.device)
        else:
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        blocks = max(map(self._prompt_blocks, self.voices.values()), default=0)
        return EngineMemory(
            used_mb=round(used / MIB, 1),
            total_mb=round(budget.free_memory(self.device)[1] / MIB, 1),
            per_session_mb=round(self.budget.session_bytes / MIB, 1),
            per_voice_mb=round(blocks * self.budget.page_bytes / MIB, 1),
        )


def load(pack: Voicepack, config: CosyVoice2Config, timed: Timed) -> Loaded:
    """Load a pack. Raises ``CosyVoiceInitializationError``."""
    device = devices.choose(config.device)
    dtype = devices.precision(config.dtype, device)
    requirements.check(config, device, dtype)
    devices.limit(device, config.memory_limit_mb)
    devices.settle(device, dtype, config.threads)
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
            # It has taken more than a cache: the rest is shared out anew.
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
        audio.make_room = speakers.make_room
    return Loaded(
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
) -> BlockStage | ExactStage:
    if config.upstream_exact:
        return ExactStage(model.flow, model.vocoder)
    if config.estimator_backend == "tensorrt":
        renderer = WholeRenderer(model.flow, max_blocks=shares.max_blocks)
        vocoder = VocoderStage(model.vocoder, shares.batches, graphs)
        return WholeStage(renderer, vocoder, shares.batches, graphs)
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
