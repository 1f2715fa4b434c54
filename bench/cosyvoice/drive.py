"""Drives a core in this process as its host does, under a load, with simulated listeners."""

import time
from collections import deque
from typing import Any, Final

import msgspec
import torch

from bench.cosyvoice.listening import Heard, Playback
from bench.cosyvoice.load import Ask, Load
from voicefleet.worker.engines.hosting.core import Core
from voicefleet.worker.engines.hosting.messages import Audio, Failed, Spoken
from voicefleet.worker.engines.protocol import Segment, TurnSpec
from voicefleet.worker.text.segment import Segmenter

IDLE_S: Final = 0.0005
"""How long to sleep if the core is idle; commands in a fleet come with a similar delay."""

TOLD_S: Final = 0.02
"""The host reports consumed audio in frames of this length."""


class Turn(msgspec.Struct, kw_only=True):
    """A turn in the engine."""

    ask: Ask
    opened_at: float
    playback: Playback
    told: int = 0


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a load. ``waited`` turns found no free slot at first."""

    heard: tuple[Heard, ...]
    began_at: float
    waited: int
    highest: int


class Drive:
    """Drives a loaded core. One load at a time."""

    def __init__(self, slots: int) -> None:
        self.core: Core
        self._slots = slots
        self._live: dict[int, Turn] = {}
        self._heard: list[Heard] = []
        self._number = 0
        self._load: Load
        self._busy_until = 0.0

    def emit(self, event: Any) -> None:
        """Receive an event of the core."""
        now = time.monotonic()
        if isinstance(event, Audio):
            turn = self._live.get(event.turn)
            if turn is not None:
                turn.playback.arrive(now, event.array)
        elif isinstance(event, Spoken | Failed):
            turn = self._live.pop(event.turn, None)
            if turn is not None:
                problem = event.message if isinstance(event, Failed) else None
                self._end(turn, now, failed=problem)

    def run(self, load: Load, limit_s: float = 600.0) -> Run:
        """Run all turns of a load to their ends.

        Raises:
            TimeoutError: The load does not end.
        """
        core, waiting = self.core, deque[Ask]()
        self._heard, self._load = [], load
        began_at = time.monotonic()
        load.begin(began_at)
        waited = highest = 0
        while True:
            now = time.monotonic()
            if now - began_at > limit_s:
                raise TimeoutError(f"the load {load.name} does not end in {limit_s:.0f} s")
            due = load.due(now)
            waiting.extend(due)
            free = self._slots - len(self._live)
            waited += max(0, len(waiting) - free) if due else 0
            for _ in range(min(free, len(waiting))):
                self._open(waiting.popleft())
            highest = max(highest, len(self._live))
            self._listen(now)
            if not core.step():
                if not self._live and not waiting and load.next_at() == float("inf"):
                    break
                time.sleep(IDLE_S)
        return Run(heard=tuple(self._heard), began_at=began_at, waited=waited, highest=highest)

    def _open(self, ask: Ask) -> None:
        core, info = self.core, self.core.info
        self._number += 1
        number = self._number
        self._live[number] = Turn(
            ask=ask, opened_at=time.monotonic(), playback=Playback(info.native_rate)
        )
        core.open(number, TurnSpec(voice=info.default_voice, seed=ask.seed))
        segmenter = Segmenter(info.limits)
        for segment in [*segmenter.push(ask.text), *segmenter.flush()]:
            core.push(number, Segment(segment.index, segment.text, segment.start, segment.end))
        core.end(number)

    def _listen(self, now: float) -> None:
        """Report consumed audio to the core, and cancel turns that are due to stop."""
        for number, turn in list(self._live.items()):
            playback = turn.playback
            taken = playback.taken(now) if turn.ask.paced else playback.produced
            if taken - turn.told >= TOLD_S * playback.rate:
                turn.told = taken
                self.core.consumed(number, taken)
            stop_at = turn.ask.stop_at
            if stop_at is not None and now >= stop_at:
                self.core.cancel(number)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                del self._live[number]
                self._end(turn, time.monotonic(), stopped=True)

    def _end(
        self, turn: Turn, now: float, *, failed: str | None = None, stopped: bool = False
    ) -> None:
        playback, ask = turn.playback, turn.ask
        never = float("nan")
        self._heard.append(
            Heard(
                asked_at=ask.at,
                opened_at=turn.opened_at,
                first_at=never if playback.first_at is None else playback.first_at,
                audible_at=playback.audible_at,
                last_at=playback.last_at,
                audio_s=playback.produced / playback.rate,
                first_piece_s=playback.first_samples / playback.rate,
                late_s=tuple(playback.late_s) if ask.paced else (),
                stop_s=now - ask.stop_at if stopped and ask.stop_at is not None else None,
                failed=failed,
            )
        )
        over = playback.ends_at if ask.paced and not stopped and not failed else now
        self._load.ended(max(now, over))
