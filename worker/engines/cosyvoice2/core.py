"""The engine's loop: it serves all sequences of the device, one step at a time.

A step starts rendering a batch of chunks, prefills new utterances, starts a few decode steps, then
sends what has been rendered. The device decodes while the host sends audio.
"""

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager

import msgspec
import numpy as np
import torch

from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceError, CosyVoiceOOMError
from voicefleet.worker.engines.cosyvoice2.family import CosyVoice2Config
from voicefleet.worker.engines.cosyvoice2.lm.decoding import MAX_MULTI_STEP
from voicefleet.worker.engines.cosyvoice2.loading import load
from voicefleet.worker.engines.cosyvoice2.model_runner import ModelRunner
from voicefleet.worker.engines.cosyvoice2.out_of_memory import is_out_of_memory
from voicefleet.worker.engines.cosyvoice2.rendering import AudioPiece
from voicefleet.worker.engines.cosyvoice2.scheduler import Scheduler
from voicefleet.worker.engines.cosyvoice2.timings import Timings
from voicefleet.worker.engines.cosyvoice2.turn_sequence import TurnSequence, Utterance
from voicefleet.worker.engines.cosyvoice2.utterances import PAUSE_S, Composer
from voicefleet.worker.engines.cosyvoice2.voices.speaker import condition
from voicefleet.worker.engines.hosting.core import Emit
from voicefleet.worker.engines.hosting.messages import Audio, Changed, Event, Failed, Spoken
from voicefleet.worker.engines.protocol import (
    CannotSpeakError,
    EngineError,
    EngineInfo,
    Mark,
    Samples,
    Segment,
    TurnSpec,
)
from voicefleet.worker.voicepacks.voicepack import Voicepack

MULTI_STEP_S = 0.015
"""Decode steps are started for about this long at once: commands wait for them."""

RENDER_S = 1.0
"""A batch of rendering takes at most about this long, on devices where every row costs time."""

BEGIN_AT_ONCE = 4
"""Utterances prefilled in one step, at most: other sequences' audio waits for them."""

DRY_RUN = -1
"""The turn number of the warm-up, whose audio is discarded."""


class CosyVoice2Core:
    """CosyVoice 2 on one device. Implements ``hosting.core.Core``, which documents the methods."""

    def __init__(self, pack: Voicepack, config: CosyVoice2Config, emit: Emit) -> None:
        self._pack = pack
        self._config = config
        self._emit = emit
        self.timings = Timings()
        self._loaded: ModelRunner | None = None
        self._composer: Composer
        self._sequences: dict[int, TurnSequence] = {}
        self._free_slots: list[int] = []
        self._scheduler = Scheduler((1,), config.max_ahead_s)
        self._max_steps = 1

    @property
    def info(self) -> EngineInfo:
        """What the model can do. Raises ``EngineError`` while it is not loaded."""
        return self._runner.info

    @torch.inference_mode()
    def load(self) -> None:
        """Load the model. Raises ``CosyVoiceInitializationError``."""
        loaded = self._loaded = load(self._pack, self._config, self.timings.measure)
        self._free_slots = list(range(loaded.decoder.slots))[::-1]
        self._scheduler = Scheduler(loaded.audio.batches, self._config.max_ahead_s)
        self._composer = Composer(loaded)

    @torch.inference_mode()
    def warm_up(self, text: str) -> None:
        """Capture CUDA graphs, prepare voices, speak ``text`` unheard, and measure the device."""
        with self.timings.measure("graphs"):
            self._runner.warm_up()
        with self.timings.measure("voices"):
            self._runner.preload()
        with self.timings.measure("dry_run"):
            self._dry_run(text)
        with self.timings.measure("capacity"):
            self._runner.measure()
        self._max_steps = self._runner.steps_in(MULTI_STEP_S, MAX_MULTI_STEP)
        self._scheduler.batch = self._runner.batch_in(RENDER_S)

    @torch.inference_mode()
    def open(self, turn: int, spec: TurnSpec) -> None:
        """Begin a turn. Raises ``CannotSpeakError``, ``EngineError``."""
        if not self._free_slots:
            raise EngineError(f"all {len(self._sequences)} places are taken")
        model = self._runner
        try:
            speaker = model.speakers.acquire(spec.voice)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise self._ran_out_of_memory(error) from None
        try:
            # Here, not at the first segment, so that a mode the voice lacks is refused at once.
            conditioning = condition(spec, speaker.voice, model.frontend)
        except CannotSpeakError:
            model.speakers.release(speaker)
            raise
        self._sequences[turn] = TurnSequence(
            turn=turn,
            spec=spec,
            speaker=speaker,
            conditioning=conditioning,
            slot=self._free_slots.pop(),
            rate=model.info.native_rate,
        )

    def push(self, turn: int, segment: Segment) -> None:
        """Take the turn's next segment."""
        sequence = self._sequences[turn]
        if sequence.spec.streamed and self._config.text_streaming:
            utterance = self._composer.write(sequence, segment)
            if utterance.stalled:
                self._prefill_more(sequence, utterance)
        else:
            sequence.waiting += self._composer.pieces(sequence, segment)

    def end(self, turn: int) -> None:
        """Take note that no further segment comes."""
        sequence = self._sequences[turn]
        sequence.ended = True
        if sequence.writing is not None:
            utterance = self._composer.close(sequence, sequence.writing)
            if utterance.stalled:
                self._prefill_more(sequence, utterance)

    def consumed(self, turn: int, samples: int) -> None:
        """Record how many samples of the turn have been consumed in total."""
        sequence = self._sequences.get(turn)
        if sequence is not None:
            sequence.consumed = samples

    @torch.inference_mode()
    def cancel(self, turn: int) -> None:
        """Free everything that the turn holds."""
        sequence = self._sequences.pop(turn, None)
        if sequence is None:
            return
        for utterance in sequence.speaking:
            self._runner.audio.drop(utterance)
        self._runner.speakers.release(sequence.speaker)
        self._runner.decoder.stop(sequence.slot)
        self._free_slots.append(sequence.slot)

    @torch.inference_mode()
    def step(self) -> bool:
        """Take one step. Returns ``False`` if there is nothing to do before the next command."""
        sequences = self._sequences.values()
        now = time.monotonic()
        rendering = self._render(self._scheduler.to_render(sequences, now))
        begun = self._begin(self._scheduler.to_begin(sequences, now)[:BEGIN_AT_ONCE])
        decoding = self._decode(now)
        self._send_pieces(self._runner.audio.collect())
        self._take_tokens()
        self._finish()
        return rendering or begun or decoding

    def close(self) -> None:
        """Drop the model."""
        self._sequences.clear()
        self._loaded = None

    @property
    def _runner(self) -> ModelRunner:
        if self._loaded is None:
            raise EngineError(f"{self._pack.model_id} is not loaded")
        return self._loaded

    @torch.inference_mode()
    def _prefill_more(self, sequence: TurnSequence, utterance: Utterance) -> None:
        """Prefill the text that has arrived; without any, the utterance stalls."""
        with self._failing(sequence):
            utterance.stalled = not self._runner.prefill_more(sequence, utterance)

    def _render(self, sequences: Sequence[TurnSequence]) -> bool:
        if not sequences:
            return False
        # A batch that fails halfway has advanced some of them: none can continue without a gap.
        with self._failing(*sequences):
            self._runner.audio.start(sequences)
            if self._runner.audio.ready:
                self._send_pieces(self._runner.audio.collect())
        return True

    def _begin(self, sequences: Sequence[TurnSequence]) -> bool:
        for sequence in sequences:
            utterance = sequence.next_utterance
            if utterance is None:
                continue
            sequence.waiting.popleft()
            sequence.speaking.append(utterance)
            if utterance.streamed is not None:
                self._runner.begin(sequence, utterance)
                self._prefill_more(sequence, utterance)
            elif not utterance.text:
                utterance.decoded = True
            else:
                with self._failing(sequence):
                    self._runner.prefill(sequence, utterance)
        return bool(sequences)

    def _decode(self, now: float) -> bool:
        steps, limits = self._scheduler.to_decode(self._sequences.values(), now, self._max_steps)
        if not steps:
            return False
        decoder = self._runner.decoder
        # The decoder counts control tokens too; the scheduler does not.
        further = {
            sequence.slot: decoder.count(sequence.slot) + limit - len(sequence.decoding.tokens)
            for sequence, limit in limits.items()
            if sequence.decoding is not None
        }
        decoder.multi_step(further, steps)
        return True

    def _take_tokens(self) -> None:
        news = self._runner.decoder.collect()
        control = self._runner.sizes.language_model.end_token
        for sequence in list(self._sequences.values()):
            utterance = sequence.decoding
            if utterance is None or sequence.slot not in news:
                continue
            tokens, stopped = news[sequence.slot]
            utterance.tokens += [token for token in tokens if token < control]
            text = utterance.streamed
            if stopped and text is not None and not text.interleave.final:
                self._prefill_more(sequence, utterance)
            else:
                complete = text is None or text.interleave.closed
                full = len(utterance.tokens) >= utterance.max_tokens
                utterance.decoded = stopped or (complete and full)

    def _send_pieces(self, pieces: Iterable[AudioPiece]) -> None:
        for piece in pieces:
            if piece.sequence.turn in self._sequences:
                self._send_audio(piece.sequence, piece.samples, piece.utterance)

    def _send_audio(self, sequence: TurnSequence, samples: Samples, utterance: Utterance) -> None:
        if len(samples) == 0:
            return
        if sequence.started_at is None:
            sequence.started_at = time.monotonic()
        marks, utterance.marks = utterance.marks, ()
        marks += self._marks_due(sequence, utterance, len(samples))
        sequence.produced += len(samples)
        utterance.samples_sent += len(samples)
        self._emit_event(Audio.of(sequence.turn, samples, marks))

    def _marks_due(
        self, sequence: TurnSequence, utterance: Utterance, samples: int
    ) -> tuple[Mark, ...]:
        """Marks of the streamed segments that begin within the next ``samples`` samples."""
        text = utterance.streamed
        marks: list[Mark] = []
        while text is not None and text.marks:
            token, mark = text.marks[0]
            begins = token * self._runner.sizes.samples_per_token / sequence.spec.speed
            at = round(begins) - utterance.samples_sent
            if at >= samples:
                break
            marks.append(msgspec.structs.replace(mark, offset=max(0, at)))
            text.marks.popleft()
        return tuple(marks)

    def _finish(self) -> None:
        """End the utterances and turns whose audio has all been sent."""
        for sequence in list(self._sequences.values()):
            while sequence.speaking and sequence.speaking[0].done:
                utterance = sequence.speaking[0]
                if self._runner.audio.holds(utterance):
                    break
                if utterance.marks:
                    silence = np.zeros(round(PAUSE_S * sequence.rate), dtype=np.float32)
                    self._send_audio(sequence, silence, utterance)
                if utterance.streamed is not None and utterance.streamed.marks:
                    late = tuple(mark for _, mark in utterance.streamed.marks)
                    self._emit_event(Audio(sequence.turn, b"", late))
                sequence.speaking.popleft()
            if sequence.finished:
                self._emit_event(Spoken(sequence.turn))
                self.cancel(sequence.turn)

    @contextmanager
    def _failing(self, *sequences: TurnSequence) -> Generator[None]:
        """Fail only ``sequences`` if the block raises ``EngineError`` or runs out of memory.

        Raises:
            Exception: Anything else is no turn's fault and ends the engine.
        """
        try:
            yield
        except EngineError as error:
            self._fail(sequences, error)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._fail(sequences, self._ran_out_of_memory(error))

    def _ran_out_of_memory(self, error: Exception) -> EngineError:
        """Free cached memory, offer one slot less, and return the error to report."""
        first = next(iter(str(error).splitlines()), type(error).__name__)
        self._runner.shrink()
        self._emit_event(Changed(self._runner.info))
        return CosyVoiceOOMError(f"out of memory: {first}")

    def _fail(self, sequences: Sequence[TurnSequence], error: EngineError) -> None:
        kind = "refuse" if isinstance(error, CannotSpeakError) else "retry"
        for sequence in sequences:
            self._emit_event(Failed(sequence.turn, kind, str(error)))
            self.cancel(sequence.turn)

    def _emit_event(self, event: Event) -> None:
        if isinstance(event, Changed) or event.turn != DRY_RUN:
            self._emit(event)

    def _dry_run(self, text: str) -> None:
        spec = TurnSpec(voice=self.info.default_voice, seed=0)
        self.open(DRY_RUN, spec)
        self.push(DRY_RUN, Segment(0, text, 0, len(text)))
        self.end(DRY_RUN)
        while DRY_RUN in self._sequences:
            sequence = self._sequences[DRY_RUN]
            sequence.consumed = sequence.produced
            if not self.step() and DRY_RUN in self._sequences:
                raise CosyVoiceError("warm-up came to a standstill")


def build(
    pack: Voicepack, config: CosyVoice2Config, emit: Callable[[Event], None]
) -> CosyVoice2Core:
    """Make a core; it is not loaded yet."""
    return CosyVoice2Core(pack, config, emit)
