"""The engine's loop: every session of the device, one step at a time.

A step is: start rendering a batch of chunks, begin utterances, start a burst of decoding, then hand
on what has come of both. The device works on the burst while the host hands on the audio.
"""

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from worker.config import CosyVoice2Config
from worker.engines.cosyvoice2.decoding import LARGEST_BURST
from worker.engines.cosyvoice2.errors import CosyVoiceError, CosyVoiceOOMError
from worker.engines.cosyvoice2.loading import Loaded, load
from worker.engines.cosyvoice2.rendering import Piece
from worker.engines.cosyvoice2.scheduler import Scheduler
from worker.engines.cosyvoice2.session import Session, Utterance
from worker.engines.cosyvoice2.speaker import condition
from worker.engines.hosting.core import Emit
from worker.engines.hosting.messages import Audio, Changed, Event, Failed, Spoken
from worker.engines.protocol import (
    CannotSpeakError,
    EngineError,
    EngineInfo,
    Mark,
    Samples,
    Segment,
    TurnSpec,
)
from worker.voicepacks import Voicepack

BURST_S = 0.015
"""A burst of decoding takes about this long: commands wait for it."""

BEGIN_AT_ONCE = 4
"""Utterances begun in one step: the others' audio waits meanwhile."""

PIECES_PER_SEGMENT = 1000
"""Utterances are numbered by segment, so that each is the same wherever a turn is taken up."""

PAUSE_S = 0.2
"""What a segment sounds like in which nothing can be spoken."""

SPEECH_PER_CHAR = 1.8
"""Speech tokens of a character of English: 25 tokens and some 14 characters a second."""

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
        self._sessions: dict[int, Session] = {}
        self._free_slots: list[int] = []
        self._scheduler = Scheduler(1, config.max_ahead_s)
        self._burst = 1
        self._steps_s = 0.0

    @property
    def info(self) -> EngineInfo:
        """What the model can do. Raises ``EngineError`` while it is not loaded."""
        return self._model.info

    @torch.inference_mode()
    def load(self) -> None:
        """Bring the model into memory. Raises ``CosyVoiceInitializationError``."""
        loaded = self._loaded = load(self._pack, self._config, self._timed)
        self._free_slots = list(range(loaded.decoder.slots))[::-1]
        self._scheduler = Scheduler(loaded.audio.batch, self._config.max_ahead_s)

    @torch.inference_mode()
    def warm_up(self, text: str) -> None:
        """Capture graphs, speak ``text`` to nobody, and measure what the device carries."""
        with self._timed("graphs"):
            self._model.warm_up()
        with self._timed("rehearsal"):
            self._rehearse(text)
        with self._timed("capacity"):
            self._model.measure()
        self._burst = self._model.burst(BURST_S, LARGEST_BURST)

    @torch.inference_mode()
    def open(self, turn: int, spec: TurnSpec) -> None:
        """A turn begins. Raises ``CannotSpeakError``, ``EngineError``."""
        if not self._free_slots:
            raise EngineError(f"all {len(self._sessions)} places are taken")
        model = self._model
        speaker = model.speakers.get(spec.voice)
        # What the mode lacks is known now, not when the first segment comes.
        conditioning = condition(spec, speaker.voice, model.frontend)
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
        marks = (Mark(0, segment),)
        texts = self._model.frontend.utterances(segment.text) or [[]]
        shares = self._shares(segment, texts)
        for piece, (text, share) in enumerate(zip(texts, shares, strict=True)):
            number = PIECES_PER_SEGMENT * segment.index + piece
            session.waiting.append(self._utterance(session, number, text, share, marks))
            marks = ()

    def end(self, turn: int) -> None:
        """No further segment comes."""
        self._sessions[turn].ended = True

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

    def _utterance(
        self,
        session: Session,
        number: int,
        text: list[int],
        tokens: tuple[int, int],
        marks: tuple[Mark, ...],
    ) -> Utterance:
        room = self._model.room(len(text) + session.conditioning.length)
        if room <= 0:
            raise CannotSpeakError("the voice's prompt and the segment are too long together")
        shortest, longest = tokens
        return Utterance(
            number=number,
            text=text,
            marks=marks,
            min_tokens=min(shortest, room),
            max_tokens=min(longest, room),
            chunking=self._model.audio.chunking(session.speaker),
        )

    def _shares(self, segment: Segment, texts: Sequence[list[int]]) -> list[tuple[int, int]]:
        """The fewest and the most speech tokens of each of a segment's utterances."""
        if not self._pack.synthetic:
            return [self._model.tokens_of_text(len(text)) for text in texts]
        # A model of random weights does not know when to end: it speaks as long as speech is.
        speech = SPEECH_PER_CHAR * len(segment.text) / max(1, sum(map(len, texts)))
        lengths = [max(8, round(speech * len(text))) for text in texts]
        return [(length, length) for length in lengths]

    def _render(self, sessions: Sequence[Session]) -> bool:
        if not sessions:
            return False
        with self._blame(sessions[-1]):
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
            if not utterance.text:
                utterance.decoded = True
                continue
            with self._blame(session):
                self._model.read(session, utterance)
        return bool(sessions)

    def _decode(self, now: float) -> bool:
        steps, limits = self._scheduler.to_decode(self._sessions.values(), now, self._burst)
        if not steps:
            return False
        self._model.decoder.burst({s.slot: limit for s, limit in limits.items()}, steps)
        return True

    def _take_tokens(self) -> None:
        news = self._model.decoder.collect()
        control = self._model.sizes.language_model.end_token
        for session in self._sessions.values():
            utterance = session.decoding
            if utterance is None or session.slot not in news:
                continue
            tokens, stopped = news[session.slot]
            utterance.tokens += [token for token in tokens if token < control]
            utterance.decoded = stopped or len(utterance.tokens) >= utterance.max_tokens

    def _hand_on(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            if piece.session.turn in self._sessions:
                self._say(piece.session, piece.samples, piece.utterance)

    def _say(self, session: Session, samples: Samples, utterance: Utterance) -> None:
        if len(samples) == 0:
            return
        if session.started_at is None:
            session.started_at = time.monotonic()
        session.produced += len(samples)
        marks, utterance.marks = utterance.marks, ()
        self._tell(Audio.of(session.turn, samples, marks))

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
                session.speaking.popleft()
            if session.finished:
                self._tell(Spoken(session.turn))
                self.cancel(session.turn)

    @contextmanager
    def _blame(self, session: Session) -> Generator[None]:
        """What goes wrong in the block fails ``session`` alone."""
        try:
            yield
        except EngineError as error:
            self._fail(session, error)
        except (torch.OutOfMemoryError, MemoryError) as error:
            self._out_of_memory(session, error)
        except RuntimeError as error:
            if "allocate memory" not in str(error):
                raise
            self._out_of_memory(session, error)

    def _out_of_memory(self, session: Session, error: BaseException) -> None:
        """The session that asked for memory fails, caches shrink, and fewer slots are offered."""
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        self._fail(session, CosyVoiceOOMError(f"out of memory: {first}"))
        self._model.shrink()
        self._tell(Changed(self._model.info))

    def _fail(self, session: Session, error: EngineError) -> None:
        kind = "refuse" if isinstance(error, CannotSpeakError) else "retry"
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
