"""The engine's loop: every session of the device, one step at a time.

A step is: start rendering a batch of chunks, begin utterances, start a burst of decoding, then hand
on what has come of both. The device works on the burst while the host hands on the audio.
"""

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager

import msgspec
import numpy as np
import torch

from voicefleet.worker.config.sections import CosyVoice2Config
from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceError, CosyVoiceOOMError
from voicefleet.worker.engines.cosyvoice2.lm.decoding import LARGEST_BURST
from voicefleet.worker.engines.cosyvoice2.loading import Loaded, load
from voicefleet.worker.engines.cosyvoice2.out_of_memory import is_out_of_memory
from voicefleet.worker.engines.cosyvoice2.rendering import Piece
from voicefleet.worker.engines.cosyvoice2.scheduler import Scheduler
from voicefleet.worker.engines.cosyvoice2.session import Session, Utterance
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

BURST_S = 0.015
"""A burst of decoding takes about this long: commands wait for it."""

RENDER_S = 1.0
"""Nor does a batch of rendering take longer, on a device where each of its rows counts."""

BEGIN_AT_ONCE = 4
"""Utterances begun in one step: the others' audio waits meanwhile."""

REHEARSAL = -1
"""The turn of warm-up, which nobody hears."""


class CosyVoice2Core:
    """CosyVoice 2 on one device. See ``worker.engines.hosting.core.Core``."""

    def __init__(self, pack: Voicepack, config: CosyVoice2Config, emit: Emit) -> None:
        self._pack = pack
        self._config = config
        self._emit = emit
        self.timings: dict[str, float] = {}
        self._loaded: Loaded | None = None
        self._composer: Composer
        self._sessions: dict[int, Session] = {}
        self._free_slots: list[int] = []
        self._scheduler = Scheduler((1,), config.max_ahead_s)
        self._burst = 1

    @property
    def info(self) -> EngineInfo:
        """What the model can do. Raises ``EngineError`` while it is not loaded."""
        return self._model.info

    @torch.inference_mode()
    def load(self) -> None:
        """Bring the model into memory. Raises ``CosyVoiceInitializationError``."""
        loaded = self._loaded = load(self._pack, self._config, self._timed)
        self._free_slots = list(range(loaded.decoder.slots))[::-1]
        self._scheduler = Scheduler(loaded.audio.batches, self._config.max_ahead_s)
        self._composer = Composer(loaded)

    @torch.inference_mode()
    def warm_up(self, text: str) -> None:
        """Capture graphs, prepare voices, speak ``text`` to nobody, and measure the device."""
        with self._timed("graphs"):
            self._model.warm_up()
        with self._timed("voices"):
            self._model.preload()
        with self._timed("rehearsal"):
            self._rehearse(text)
        with self._timed("capacity"):
            self._model.measure()
        self._burst = self._model.burst(BURST_S, LARGEST_BURST)
        self._scheduler.batch = self._model.batch(RENDER_S)

    @torch.inference_mode()
    def open(self, turn: int, spec: TurnSpec) -> None:
        """A turn begins. Raises ``CannotSpeakError``, ``EngineError``."""
        if not self._free_slots:
            raise EngineError(f"all {len(self._sessions)} places are taken")
        model = self._model
        try:
            speaker = model.speakers.take(spec.voice)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise self._exhausted(error) from None
        try:
            # What the mode lacks is known now, not when the first segment comes.
            conditioning = condition(spec, speaker.voice, model.frontend)
        except CannotSpeakError:
            model.speakers.give_back(speaker)
            raise
        self._sessions[turn] = Session(
            turn=turn,
            spec=spec,
            speaker=speaker,
            conditioning=conditioning,
            slot=self._free_slots.pop(),
            rate=model.info.native_rate,
        )

    def push(self, turn: int, segment: Segment) -> None:
        """The turn's next segment."""
        session = self._sessions[turn]
        if session.spec.streamed and self._config.text_streaming:
            utterance = self._composer.write(session, segment)
            if utterance.stalled:
                self._feed(session, utterance)
        else:
            session.waiting += self._composer.pieces(session, segment)

    def end(self, turn: int) -> None:
        """No further segment comes."""
        session = self._sessions[turn]
        session.ended = True
        if session.writing is not None:
            utterance = self._composer.close(session, session.writing)
            if utterance.stalled:
                self._feed(session, utterance)

    def consumed(self, turn: int, samples: int) -> None:
        """So many samples have been taken, in all."""
        session = self._sessions.get(turn)
        if session is not None:
            session.consumed = samples

    @torch.inference_mode()
    def cancel(self, turn: int) -> None:
        """Free all that the turn holds."""
        session = self._sessions.pop(turn, None)
        if session is None:
            return
        for utterance in session.speaking:
            self._model.audio.drop(utterance)
        self._model.speakers.give_back(session.speaker)
        self._model.decoder.stop(session.slot)
        self._free_slots.append(session.slot)

    @torch.inference_mode()
    def step(self) -> bool:
        """One step. ``False``: there is nothing to do until the next command."""
        sessions = self._sessions.values()
        now = time.monotonic()
        rendering = self._render(self._scheduler.to_render(sessions, now))
        begun = self._begin(self._scheduler.to_begin(sessions, now)[:BEGIN_AT_ONCE])
        decoding = self._decode(now)
        self._hand_on(self._model.audio.collect())
        self._take_tokens()
        self._finish()
        return rendering or begun or decoding

    def close(self) -> None:
        """Forget the model."""
        self._sessions.clear()
        self._loaded = None

    @property
    def _model(self) -> Loaded:
        if self._loaded is None:
            raise EngineError(f"{self._pack.model_id} is not loaded")
        return self._loaded

    @torch.inference_mode()
    def _feed(self, session: Session, utterance: Utterance) -> None:
        """Let the decoder read what there is of a text, or let it wait for more."""
        with self._blame(session):
            utterance.stalled = not self._model.read_on(session, utterance)

    def _render(self, sessions: Sequence[Session]) -> bool:
        if not sessions:
            return False
        # A batch that broke off has moved some of them on: none can go on without a gap.
        with self._blame(*sessions):
            self._model.audio.start(sessions)
            if self._model.audio.ready:
                self._hand_on(self._model.audio.collect())
        return True

    def _begin(self, sessions: Sequence[Session]) -> bool:
        for session in sessions:
            utterance = session.next_utterance
            if utterance is None:
                continue
            session.waiting.popleft()
            session.speaking.append(utterance)
            if utterance.streamed is not None:
                self._model.begin(session, utterance)
                self._feed(session, utterance)
            elif not utterance.text:
                utterance.decoded = True
            else:
                with self._blame(session):
                    self._model.read(session, utterance)
        return bool(sessions)

    def _decode(self, now: float) -> bool:
        steps, limits = self._scheduler.to_decode(self._sessions.values(), now, self._burst)
        if not steps:
            return False
        decoder = self._model.decoder
        # A slot counts its control tokens too.
        further = {
            session.slot: decoder.count(session.slot) + limit - len(session.decoding.tokens)
            for session, limit in limits.items()
            if session.decoding is not None
        }
        decoder.burst(further, steps)
        return True

    def _take_tokens(self) -> None:
        news = self._model.decoder.collect()
        control = self._model.sizes.language_model.end_token
        for session in list(self._sessions.values()):
            utterance = session.decoding
            if utterance is None or session.slot not in news:
                continue
            tokens, stopped = news[session.slot]
            utterance.tokens += [token for token in tokens if token < control]
            text = utterance.streamed
            if stopped and text is not None and not text.interleave.final:
                self._feed(session, utterance)
            else:
                complete = text is None or text.interleave.closed
                full = len(utterance.tokens) >= utterance.max_tokens
                utterance.decoded = stopped or (complete and full)

    def _hand_on(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            if piece.session.turn in self._sessions:
                self._say(piece.session, piece.samples, piece.utterance)

    def _say(self, session: Session, samples: Samples, utterance: Utterance) -> None:
        if len(samples) == 0:
            return
        if session.started_at is None:
            session.started_at = time.monotonic()
        marks, utterance.marks = utterance.marks, ()
        marks += self._reached(session, utterance, len(samples))
        session.produced += len(samples)
        utterance.said += len(samples)
        self._tell(Audio.of(session.turn, samples, marks))

    def _reached(self, session: Session, utterance: Utterance, samples: int) -> tuple[Mark, ...]:
        """The later segments of a text being written that begin in the next ``samples``."""
        text = utterance.streamed
        marks: list[Mark] = []
        while text is not None and text.marks:
            token, mark = text.marks[0]
            heard = token * self._model.sizes.samples_per_token / session.spec.speed
            at = round(heard) - utterance.said
            if at >= samples:
                break
            marks.append(msgspec.structs.replace(mark, offset=max(0, at)))
            text.marks.popleft()
        return tuple(marks)

    def _finish(self) -> None:
        """End what has been rendered and handed on: utterances, and turns."""
        for session in list(self._sessions.values()):
            while session.speaking and session.speaking[0].done:
                utterance = session.speaking[0]
                if self._model.audio.holds(utterance):
                    break
                if utterance.marks:
                    silence = np.zeros(round(PAUSE_S * session.rate), dtype=np.float32)
                    self._say(session, silence, utterance)
                if utterance.streamed is not None and utterance.streamed.marks:
                    late = tuple(mark for _, mark in utterance.streamed.marks)
                    self._tell(Audio(session.turn, b"", late))
                session.speaking.popleft()
            if session.finished:
                self._tell(Spoken(session.turn))
                self.cancel(session.turn)

    @contextmanager
    def _blame(self, *sessions: Session) -> Generator[None]:
        """What an engine raises in the block, or a lack of memory, fails ``sessions`` alone.

        Raises:
            Exception: Anything else. It is no turn's fault, and ends the engine.
        """
        try:
            yield
        except EngineError as error:
            self._fail(sessions, error)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._fail(sessions, self._exhausted(error))

    def _exhausted(self, error: Exception) -> EngineError:
        """There was not enough memory: caches shrink, and fewer slots are offered."""
        first = next(iter(str(error).splitlines()), type(error).__name__)
        self._model.shrink()
        self._tell(Changed(self._model.info))
        return CosyVoiceOOMError(f"out of memory: {first}")

    def _fail(self, sessions: Sequence[Session], error: EngineError) -> None:
        kind = "refuse" if isinstance(error, CannotSpeakError) else "retry"
        for session in sessions:
            self._tell(Failed(session.turn, kind, str(error)))
            self.cancel(session.turn)

    def _tell(self, event: Event) -> None:
        if isinstance(event, Changed) or event.turn != REHEARSAL:
            self._emit(event)

    def _rehearse(self, text: str) -> None:
        spec = TurnSpec(voice=self.info.default_voice, seed=0)
        self.open(REHEARSAL, spec)
        self.push(REHEARSAL, Segment(0, text, 0, len(text)))
        self.end(REHEARSAL)
        while REHEARSAL in self._sessions:
            session = self._sessions[REHEARSAL]
            session.consumed = session.produced
            if not self.step() and REHEARSAL in self._sessions:
                raise CosyVoiceError("warm-up came to a standstill")

    @contextmanager
    def _timed(self, phase: str) -> Generator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self.timings[phase] = round(1000 * (time.monotonic() - begun), 1)


def build(
    pack: Voicepack, config: CosyVoice2Config, emit: Callable[[Event], None]
) -> CosyVoice2Core:
    """A core, not loaded yet."""
    return CosyVoice2Core(pack, config, emit)
