"""Upstream's CosyVoice 2 as a core, to compare our own engine with.

Upstream's ``tts`` makes the audio, streaming, with one thread for each turn as in its own server.
Our frontend reads texts, voices and modes, so that both engines get the same tokens.
"""

import hashlib
import queue
from collections.abc import Callable, Iterator

import structlog
import torch

from voicefleet.worker.engines.cosyvoice2 import budget
from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceError
from voicefleet.worker.engines.cosyvoice2.family import CosyVoice2Config
from voicefleet.worker.engines.cosyvoice2.text.frontend import TextFrontend
from voicefleet.worker.engines.cosyvoice2.text.tokenizer import TextTokenizer
from voicefleet.worker.engines.cosyvoice2.timings import Timings
from voicefleet.worker.engines.cosyvoice2.utterances import (
    PAUSE_S,
    PIECES_PER_SEGMENT,
    SPEECH_PER_CHAR,
)
from voicefleet.worker.engines.cosyvoice2.voices import catalogue
from voicefleet.worker.engines.cosyvoice2.voices.speaker import (
    Conditioning,
    condition,
    find,
    modes_of_all,
)
from voicefleet.worker.engines.cosyvoice2.voices.voice import Voice
from voicefleet.worker.engines.cosyvoice2_upstream.loading import Upstream, load
from voicefleet.worker.engines.cosyvoice2_upstream.request import UtteranceRequest
from voicefleet.worker.engines.cosyvoice2_upstream.turns import (
    QueuedUtterance,
    TurnEvent,
    TurnThread,
    Work,
)
from voicefleet.worker.engines.hosting.core import Emit
from voicefleet.worker.engines.hosting.messages import Audio, Failed
from voicefleet.worker.engines.protocol import (
    EngineError,
    EngineInfo,
    EngineMemory,
    Mark,
    Samples,
    Segment,
    SegmentLimits,
    TurnSpec,
)
from voicefleet.worker.voicepacks.voicepack import Voicepack

STEP_S = 0.01
"""The longest that a step waits for audio, and that commands wait for a step."""

CLOSE_S = 5.0

DRY_RUN = -1
"""The turn number of the warm-up, whose audio is discarded."""

log = structlog.get_logger()


class CosyVoice2UpstreamCore:
    """Upstream on one device. Implements ``hosting.core.Core``, which documents the methods.

    ``patched`` names the defects of upstream that were patched (see ``patches``), for reports.
    """

    def __init__(self, pack: Voicepack, config: CosyVoice2Config, emit: Emit) -> None:
        self._pack = pack
        self._config = config
        self._emit = emit
        self.timings = Timings()
        self.patched: tuple[str, ...] = ()
        self._upstream: Upstream | None = None
        self._frontend: TextFrontend | None = None
        self._voices: dict[str, Voice] = {}
        self._session_mb = 0.0
        self._turns: dict[int, TurnThread] = {}
        self._turn_settings: dict[int, tuple[TurnSpec, Voice, Conditioning]] = {}
        self._reports = queue.SimpleQueue[tuple[TurnThread, TurnEvent]]()

    @property
    def info(self) -> EngineInfo:
        """Capabilities and limits. Raises ``EngineError`` while the model is not loaded."""
        upstream, pack = self._loaded, self._pack
        return EngineInfo(
            native_rate=upstream.rate,
            slots=self._slots,
            voices=tuple(self._voices),
            default_voice=pack.default_voice or next(iter(self._voices)),
            languages=pack.languages,
            modes=modes_of_all(self._voices.values()),
            # This core passes whole segments to upstream.
            capabilities=tuple(c for c in pack.capabilities if c != "text-streaming"),
            limits=SegmentLimits(self._config.first_chars, self._config.max_chars),
            device=str(upstream.device),
            memory_mb=pack.memory_mb,
            memory=self._memory(upstream.device),
            synthetic=pack.synthetic,
        )

    def load(self) -> None:
        """Load the model. Raises ``CosyVoiceInitializationError``."""
        upstream = load(self._pack, self._config, self.timings.measure)
        self._frontend = TextFrontend(TextTokenizer(self._pack.directory / "CosyVoice-BlankEN"))
        self._voices = catalogue.voices(self._pack)
        self._upstream, self.patched = upstream, upstream.patched
        log.info("upstream_patched", patches=list(upstream.patched))

    def warm_up(self, text: str) -> None:
        """Speak ``text`` unheard. Raises ``CosyVoiceError`` if that fails."""
        device = self._loaded.device
        before = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        with self.timings.measure("dry_run"):
            self._dry_run(text)
        if device.type == "cuda":
            most = torch.cuda.max_memory_allocated(device)
            self._session_mb = round((most - before) / budget.MIB, 1)

    def open(self, turn: int, spec: TurnSpec) -> None:
        """Begin a turn. Raises ``CannotSpeakError``, ``EngineError``."""
        upstream = self._loaded
        if len(self._turns) >= self._slots:
            raise EngineError(f"all {len(self._turns)} places are taken")
        voice = find(self._voices, spec.voice)
        self._turn_settings[turn] = spec, voice, condition(spec, voice, self._texts)
        ahead = round(self._config.max_ahead_s * upstream.rate)
        self._turns[turn] = TurnThread(turn, ahead, self._take)

    def push(self, turn: int, segment: Segment) -> None:
        """Take the turn's next segment."""
        thread, marks = self._turns[turn], (Mark(0, segment),)
        texts = [text for text in self._texts.utterances(segment.text) if text]
        pause = round(PAUSE_S * self._loaded.rate)
        if not texts:
            thread.push(QueuedUtterance(None, pause, marks))
        for piece, text in enumerate(texts):
            number = PIECES_PER_SEGMENT * segment.index + piece
            length = self._length(segment, text, texts)
            thread.push(QueuedUtterance(self._work(turn, number, text, length), pause, marks))
            marks = ()

    def end(self, turn: int) -> None:
        """Take note that no further segment comes."""
        self._turns[turn].push(None)

    def consumed(self, turn: int, samples: int) -> None:
        """Record how many samples of the turn have been consumed in total."""
        if turn in self._turns:
            self._turns[turn].consumed(samples)

    def cancel(self, turn: int) -> None:
        """End the turn after upstream's current token or chunk."""
        thread = self._turns.pop(turn, None)
        self._turn_settings.pop(turn, None)
        if thread is not None:
            thread.cancel()

    def step(self) -> bool:
        """Send what the turns have made. ``False``: nothing comes before the next command."""
        # Checked first: a thread reports before it stops being busy.
        busy = any(thread.busy for thread in self._turns.values())
        try:
            thread, report = self._reports.get(timeout=STEP_S) if busy else self._reports.get(False)
        except queue.Empty:
            return busy
        if self._turns.get(thread.turn) is thread:
            if not isinstance(report, Audio):
                self.cancel(thread.turn)
            if thread.turn == DRY_RUN:
                self._dry_run_event(thread, report)
            else:
                self._emit(report)
        return True

    def close(self) -> None:
        """Drop the model."""
        threads = list(self._turns.values())
        for turn in list(self._turns):
            self.cancel(turn)
        for thread in threads:
            thread.join(CLOSE_S)
        self._upstream = None

    @property
    def _slots(self) -> int:
        return self._config.slots or 1

    @property
    def _loaded(self) -> Upstream:
        if self._upstream is None:
            raise EngineError(f"{self._pack.model_id} is not loaded")
        return self._upstream

    @property
    def _texts(self) -> TextFrontend:
        assert self._frontend is not None, "not loaded"
        return self._frontend

    def _work(
        self, turn: int, number: int, text: list[int], length: int | None
    ) -> Callable[[], Work]:
        upstream, (spec, voice, conditioning) = self._loaded, self._turn_settings[turn]

        def begin() -> Work:
            request = UtteranceRequest(seed_of(spec.seed, number), length, upstream.device)

            def chunks(request: UtteranceRequest) -> Iterator[Samples]:
                return upstream.speak(request, text, conditioning, voice, spec.speed)

            return request, chunks

        return begin

    def _length(self, segment: Segment, text: list[int], texts: list[list[int]]) -> int | None:
        """The number of speech tokens of an utterance; None: the model decides."""
        if not self._pack.synthetic:
            return None
        # A model of random weights does not know when to end, so it gets the length of speech.
        speech = SPEECH_PER_CHAR * len(segment.text) / sum(map(len, texts))
        return max(8, round(speech * len(text)))

    def _take(self, thread: TurnThread, report: TurnEvent) -> None:
        self._reports.put((thread, report))

    def _memory(self, device: torch.device) -> EngineMemory:
        used = budget.used_memory(device)
        return EngineMemory(
            used_mb=round(used / budget.MIB, 1),
            total_mb=round(budget.free_memory(device)[1] / budget.MIB, 1),
            per_session_mb=self._session_mb,
            per_voice_mb=0.0,
        )

    def _dry_run(self, text: str) -> None:
        self.open(DRY_RUN, TurnSpec(voice=self.info.default_voice, seed=0))
        self.push(DRY_RUN, Segment(0, text, 0, len(text)))
        self.end(DRY_RUN)
        while DRY_RUN in self._turns:
            self.step()

    def _dry_run_event(self, thread: TurnThread, report: TurnEvent) -> None:
        if isinstance(report, Failed):
            raise CosyVoiceError(f"warm-up: {report.message}")
        thread.consumed(2**62)  # no listener has to keep up


def seed_of(seed: int, number: int) -> int:
    """The seed of a turn's utterance, 64 bits: the same on every worker."""
    digest = hashlib.blake2b(f"{seed} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def build(pack: Voicepack, config: CosyVoice2Config, emit: Emit) -> CosyVoice2UpstreamCore:
    """Make a core; it is not loaded yet."""
    return CosyVoice2UpstreamCore(pack, config, emit)
