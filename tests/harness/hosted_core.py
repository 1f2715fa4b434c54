"""A core for tests of hosting: a tone, with switches for every failure.

What a turn is to do is said in its text, so that the same words travel the whole way:
at its third block ``crash`` kills the process, ``hang`` stops the step for good and ``babble``
writes nonsense; ``stumble`` and ``refuse`` fail the turn, ``poison`` the engine, and ``fewer``
leaves it two slots.
"""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from typing import Any

import numpy as np
import structlog

from voicefleet.worker.engines.hosting.core import Emit
from voicefleet.worker.engines.hosting.messages import Audio, Changed, Failed, Spoken
from voicefleet.worker.engines.protocol import (
    CannotSpeakError,
    EngineInfo,
    EngineLoadError,
    EngineMemory,
    Mark,
    Segment,
    TurnSpec,
)
from voicefleet.worker.voicepacks.voicepack import Voicepack

log = structlog.get_logger()

NAME = f"{__name__}:build"
RATE = 24_000
BLOCK = 2_400
SAMPLES_PER_CHAR = 1_200


def expected(text: str, seed: int, index: int = 0) -> np.ndarray:
    """All samples of a segment, which depend on text, seed and index alone."""
    digest = hashlib.blake2b(f"{seed}/{index}/{text}".encode(), digest_size=4).digest()
    hz = 100 + int.from_bytes(digest, "big") % 400
    at = np.arange(SAMPLES_PER_CHAR * max(1, len(text)), dtype=np.float64) / RATE
    return (0.2 * np.sin(2 * np.pi * hz * at)).astype(np.float32)


class _Turn:
    def __init__(self, spec: TurnSpec) -> None:
        self.spec = spec
        self.segments: deque[Segment] = deque()
        self.ended = False
        self.made = 0
        self.consumed = 0
        self.audio: np.ndarray | None = None
        self.at = 0
        self.text = ""


class ToneCore:
    """Makes blocks of 0.1 s, one per step, for its turns in rotation."""

    def __init__(self, pack: Voicepack, config: dict[str, Any], emit: Emit) -> None:
        self._config = config
        self._emit = emit
        self._pack = pack
        self._turns: dict[int, _Turn] = {}
        self._waiting: deque[int] = deque()
        self._slots = config.get("slots", 64)
        self._ballast = b""
        self.timings: dict[str, float] = {}

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            native_rate=RATE,
            slots=self._slots,
            voices=("tone-a", "tone-b"),
            default_voice="tone-a",
            languages=("en",),
            device=self._config.get("device", "cpu"),
            memory=EngineMemory(
                used_mb=len(self._ballast) / 2**20,
                total_mb=1024,
                per_session_mb=0.5,
                per_voice_mb=len(self._turns),  # how many turns are alive, for tests to look at
            ),
        )

    def load(self) -> None:
        match self._config.get("load"):
            case "fail":
                raise EngineLoadError("no hands")
            case "break":
                raise ValueError("odd hands")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(3600)
            case _:
                pass
        time.sleep(self._config.get("load_s", 0))
        if self._config.get("helper"):
            self.timings["helper"] = float(subprocess.Popen(["sleep", "3600"]).pid)
        self._ballast = b"\1" * (self._config.get("ballast_mb", 0) * 2**20)
        self.timings["load"] = 1.0

    def warm_up(self, text: str) -> None:
        if self._config.get("warm") == "hang":
            time.sleep(3600)
        self.timings["warm_up"] = float(len(text))

    def open(self, turn: int, spec: TurnSpec) -> None:
        if spec.instruct is not None:
            raise CannotSpeakError("takes no instructions")
        log.info("opened", text="not to be logged")
        self._turns[turn] = _Turn(spec)
        self._waiting.append(turn)
        self._emit(Changed(self.info))

    def push(self, turn: int, segment: Segment) -> None:
        self._turn(turn).segments.append(segment)

    def end(self, turn: int) -> None:
        self._turn(turn).ended = True

    def consumed(self, turn: int, samples: int) -> None:
        self._turn(turn).consumed = samples

    def _turn(self, number: int) -> _Turn:
        if number not in self._turns:
            sys.exit("a command for a turn that is over")
        return self._turns[number]

    def cancel(self, turn: int) -> None:
        if self._turns.pop(turn, None) is not None:
            self._waiting.remove(turn)
            self._emit(Changed(self.info))

    def step(self) -> bool:
        for _ in range(len(self._waiting)):
            number = self._waiting[0]
            self._waiting.rotate(-1)
            if self._block(number, self._turns[number]):
                return True
        return False

    def close(self) -> None:
        pass

    def _block(self, number: int, turn: _Turn) -> bool:
        ahead = self._config.get("max_ahead", 3 * RATE)
        if turn.made - turn.consumed >= ahead:
            return False
        marks: tuple[Mark, ...] = ()
        if turn.audio is None:
            if not turn.segments:
                if turn.ended:
                    self._emit(Spoken(number))
                    self.cancel(number)
                return turn.ended
            segment = turn.segments.popleft()
            turn.audio, turn.at = expected(segment.text, turn.spec.seed, segment.index), 0
            marks, turn.text = (Mark(0, segment),), segment.text
            self._act(number, segment.text)
            if number not in self._turns:
                return True
        elif turn.at == 2 * BLOCK:
            _misbehave(turn.text)
        if delay := self._config.get("step_s"):
            time.sleep(delay)
        samples = turn.audio[turn.at : turn.at + BLOCK]
        turn.at += len(samples)
        turn.made += len(samples)
        self._emit(Audio.of(number, samples, marks))
        if turn.at >= len(turn.audio):
            turn.audio = None
        return True

    def _act(self, number: int, text: str) -> None:
        """Fail as the text demands, before the first block."""
        if "stumble" in text:
            self._emit(Failed(number, "retry", "stumbled"))
            self.cancel(number)
        elif "refuse" in text:
            self._emit(Failed(number, "refuse", "will not"))
            self.cancel(number)
        elif "poison" in text:
            raise ValueError("poisoned")
        elif "fewer" in text:
            self._slots = 2
            self._emit(Changed(self.info))


def _misbehave(text: str) -> None:
    """Fail as the text demands, in mid-turn."""
    if "hang" in text:
        time.sleep(3600)
    elif "babble" in text:
        os.write(int(sys.argv[1]), b"\xff" * 64)
        time.sleep(3600)
    elif "crash" in text:
        os.kill(os.getpid(), signal.SIGKILL)


def build(pack: Voicepack, config: dict[str, Any], emit: Emit) -> ToneCore:
    return ToneCore(pack, config, emit)
