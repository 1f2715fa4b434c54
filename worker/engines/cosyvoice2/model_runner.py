"""The model runner: all that the engine's loop asks of a loaded model."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import structlog
import torch
from torch import Tensor

from voicefleet.worker.engines.cosyvoice2 import budget
from voicefleet.worker.engines.cosyvoice2.attention import AttentionRecorder
from voicefleet.worker.engines.cosyvoice2.backends.interfaces import TokenSource
from voicefleet.worker.engines.cosyvoice2.budget import MIB, Budget, Speed
from voicefleet.worker.engines.cosyvoice2.family import CosyVoice2Config
from voicefleet.worker.engines.cosyvoice2.hyperparameters import Hyperparameters
from voicefleet.worker.engines.cosyvoice2.lm import sampling
from voicefleet.worker.engines.cosyvoice2.lm.interleave import Interleave, Kind
from voicefleet.worker.engines.cosyvoice2.rendering import BlockStage
from voicefleet.worker.engines.cosyvoice2.text.frontend import TextFrontend
from voicefleet.worker.engines.cosyvoice2.transfer import to_device
from voicefleet.worker.engines.cosyvoice2.turn_sequence import TurnSequence, Utterance
from voicefleet.worker.engines.cosyvoice2.upstream_exact import UpstreamExactStage
from voicefleet.worker.engines.cosyvoice2.voices.speaker import (
    Speakers,
    modes_of_all,
)
from voicefleet.worker.engines.cosyvoice2.voices.voice import Voice
from voicefleet.worker.engines.protocol import EngineInfo, EngineMemory, SegmentLimits
from voicefleet.worker.voicepacks.voicepack import Voicepack

log = structlog.get_logger()

MIN_RATIO, MAX_RATIO = 2, 20
"""The fewest and the most speech tokens for each text token, as in upstream."""

STREAMED_LIMITS = SegmentLimits(first_chars=16, max_chars=24)
"""Streamed text is cut into a few words: the model prefills five text tokens at a time."""

TIMED_RUNS, TIMED_S = 3, 0.3
"""Work is timed for this many runs or seconds, whichever is reached first."""


@dataclass
class ModelRunner:
    """A loaded model's parts, and the operations that need several of them."""

    pack: Voicepack
    config: CosyVoice2Config
    sizes: Hyperparameters
    device: torch.device
    budget: Budget
    decoder: TokenSource
    audio: BlockStage | UpstreamExactStage
    frontend: TextFrontend
    speakers: Speakers
    voices: dict[str, Voice]
    offered: int
    step_s: float = 0.0
    batch_s: float = 0.0
    speed: Speed | None = None

    @property
    def info(self) -> EngineInfo:
        """The capabilities and limits to report now."""
        return EngineInfo(
            native_rate=self.sizes.sample_rate,
            slots=self.offered,
            voices=self.speakers.names,
            default_voice=self.pack.default_voice or self.speakers.names[0],
            languages=self.pack.languages,
            modes=modes_of_all(self.voices.values()),
            capabilities=self.pack.capabilities,
            limits=SegmentLimits(self.config.first_chars, self.config.max_chars),
            streamed_limits=STREAMED_LIMITS if self.config.text_streaming else None,
            device=str(self.device),
            memory_mb=self.pack.memory_mb,
            memory=self._memory(),
            gains={name: v.gain for name, v in self.voices.items() if v.gain is not None},
            capacity=budget.explain(self.budget, self.speed, self.sizes, self._offer),
            synthetic=self.pack.synthetic,
        )

    @property
    def _offer(self) -> str:
        why = "as configured" if self.config.slots else "the least of what bounds them"
        return f"{self.offered} slots, {why}"

    def room(self, prompt: int) -> int:
        """How many speech tokens an utterance may have after ``prompt`` positions of the slot."""
        # The start and the task embedding take two more.
        return min(budget.MAX_TOKENS, self.budget.positions - prompt - 2)

    def tokens_of_text(self, tokens: int) -> tuple[int, int]:
        """The fewest and the most speech tokens for ``tokens`` text tokens."""
        return MIN_RATIO * tokens, MAX_RATIO * tokens

    def prefill(self, sequence: TurnSequence, utterance: Utterance) -> None:
        """Start an utterance in the sequence's slot: random draws, constraints, prefill."""
        slot, conditioning = sequence.slot, sequence.conditioning
        draws = sampling.draws(sequence.spec.seed, utterance.number, utterance.max_tokens)
        self.decoder.begin(slot, draws)
        self.decoder.constrain(slot, min_tokens=utterance.min_tokens, banned=(True, False, False))
        text = to_device([*conditioning.text, *utterance.text], self.device)
        speech = to_device(conditioning.speech, self.device)
        self.decoder.prefill(slot, self.decoder.model.prompt_embeddings(text, speech))

    def interleave(self, sequence: TurnSequence) -> Interleave:
        """The prefill order of an utterance whose text is streamed."""
        conditioning = sequence.conditioning
        return Interleave(conditioning.text, conditioning.speech, self.sizes.language_model.mix)

    def begin(self, sequence: TurnSequence, utterance: Utterance) -> None:
        """Make the sequence's slot ready for an utterance whose text is streamed."""
        draws = sampling.draws(sequence.spec.seed, utterance.number, budget.MAX_TOKENS)
        self.decoder.begin(sequence.slot, draws)

    def prefill_more(self, sequence: TurnSequence, utterance: Utterance) -> bool:
        """Prefill the streamed text that has arrived; return whether decoding can go on."""
        assert utterance.streamed is not None
        slot, model = sequence.slot, self.decoder.model
        reading = utterance.streamed.interleave.next(self.decoder.count(slot))
        if reading is None:
            return False
        # While more text may come, only the fill token stops decoding; after that, only the end
        # token does, or, for a synthetic model, the number of tokens.
        banned = (self.pack.synthetic, True, True) if reading.final else (True, True, False)
        always = budget.MAX_TOKENS + 1
        self.decoder.constrain(slot, min_tokens=always, banned=banned, fill_at=reading.fill_at)
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
        self.decoder.prefill(slot, torch.cat(parts))
        return True

    def fills(self, tokens: int) -> int:
        """The most fill tokens among ``tokens`` decoded ones."""
        return tokens // self.sizes.language_model.mix[1] + 1

    def speech_of(self, text_tokens: int) -> int:
        """The estimated number of speech tokens that speak ``text_tokens`` text tokens."""
        mix = self.sizes.language_model.mix
        return text_tokens * mix[1] // mix[0]

    def warm_up(self) -> None:
        """Capture every CUDA graph that can be needed; in service one would delay all turns."""
        # The compiler cannot trace through the recorder.
        recorder = nullcontext() if self.config.compile else AttentionRecorder()
        with recorder:
            self.decoder.warm_up(self.budget.positions)
            longest = max(map(self._prompt_blocks, self.voices.values()))
            self.audio.warm_up(longest + budget.BLOCKS_PER_SLOT)
        if isinstance(recorder, AttentionRecorder):
            log.debug("attention_kernels", **recorder.shapes)

    def preload(self) -> None:
        """Prepare voices, the default one first, as far as the pages planned for prompts go.

        A prompt's blocks are rendered one after another: the first turn of a voice that was not
        prepared delays all other turns by that time.
        """
        default = self.info.default_voice
        room = self.budget.prompt_pages
        for name in (default, *(other for other in self.voices if other != default)):
            blocks = self._prompt_blocks(self.voices[name])
            if name == default or blocks <= room:
                self.speakers.preload(name)
                room -= blocks

    def measure(self) -> None:
        """Measure the device's speed, and offer as many slots as it can serve in real time."""
        self.step_s = self._time(self.decoder.dry_run)
        if isinstance(self.audio, UpstreamExactStage):
            self.offered = self.config.slots or 1
            return
        rows = self.audio.batch
        self.batch_s = self._time(lambda: self.audio.dry_run(rows))
        encoder = self.sizes.flow.encoder
        self.speed = Speed(
            step_s=self.step_s,
            batch_s=self.batch_s,
            rows=rows,
            token_rate=self.sizes.token_rate,
            block_s=encoder.chunk / self.sizes.token_rate,
        )
        if not self.config.slots:
            self.offered = min(self.budget.slots, self.speed.sequences)

    def steps_in(self, seconds: float, longest: int) -> int:
        """How many decode steps take about ``seconds``: 1 to ``longest``."""
        return max(1, min(longest, int(seconds / max(self.step_s, 1e-6))))

    def batch_in(self, seconds: float) -> int:
        """How many rows are rendered in about ``seconds``, if each row costs the same."""
        rows = self.audio.batch
        return max(1, min(rows, int(rows * seconds / max(self.batch_s, 1e-6))))

    def shrink(self) -> None:
        """Free cached memory and offer one slot less, after an allocation failed."""
        self.offered = max(1, self.offered - 1)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _time(self, work: Callable[[], object]) -> float:
        """The least of a few runs, in seconds; of one, where it takes long."""
        times: list[float] = []
        while len(times) < TIMED_RUNS and sum(times) < TIMED_S:
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
        used = budget.used_memory(self.device)
        blocks = max(map(self._prompt_blocks, self.voices.values()), default=0)
        return EngineMemory(
            used_mb=round(used / MIB, 1),
            total_mb=round(budget.free_memory(self.device)[1] / MIB, 1),
            per_session_mb=round(self.budget.sequence_bytes / MIB, 1),
            per_voice_mb=round(blocks * self.budget.page_bytes / MIB, 1),
        )
