"""A core in this process, driven as its host would."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from voicefleet.worker.engines.cosyvoice2.core import CosyVoice2Core
from voicefleet.worker.engines.cosyvoice2.family import CosyVoice2Config
from voicefleet.worker.engines.hosting.messages import Audio, Failed, Spoken
from voicefleet.worker.engines.protocol import Mark, Segment, TurnSpec
from voicefleet.worker.voicepacks import voicepack

SENTENCES = (
    "The birch canoe slid on the smooth planks.",
    "Glue the sheet to the dark blue background, and press it down with care.",
    "It is easy to tell the depth of a well.",
)


def segments(*texts: str) -> list[Segment]:
    """Segments as the text feed would cut them."""
    found: list[Segment] = []
    at = 0
    for index, text in enumerate(texts):
        found.append(Segment(index, text, at, at + len(text)))
        at += len(text) + 1
    return found


class Driver:
    """Speaks turns with a core and keeps what it says."""

    def __init__(self, pack: Path, warm: bool = False, **config: Any) -> None:
        self.audio: dict[int, list[np.ndarray]] = {}
        self.marks: dict[int, list[tuple[int, Mark]]] = {}
        self.events: list[Any] = []
        self.ended: dict[int, Spoken | Failed] = {}
        self.core = CosyVoice2Core(voicepack.read(pack), CosyVoice2Config(**config), self._hear)
        self.core.load()
        if warm:
            self.core.warm_up("Hello there.")
            self.events.clear()

    def _hear(self, event: Any) -> None:
        self.events.append(event)
        if isinstance(event, Audio):
            pieces = self.audio.setdefault(event.turn, [])
            at = sum(map(len, pieces))
            marks = self.marks.setdefault(event.turn, [])
            marks += [(at + mark.offset, mark) for mark in event.marks]
            pieces.append(event.array.copy())
        elif isinstance(event, Spoken | Failed):
            self.ended[event.turn] = event

    def open(self, turn: int, parts: Iterable[Segment], seed: int = 7, **spec: Any) -> None:
        spec = {"voice": self.core.info.default_voice, "seed": seed, **spec}
        self.core.open(turn, TurnSpec(**spec))
        for segment in parts:
            self.core.push(turn, segment)
        self.core.end(turn)

    def run(self, *turns: int, steps: int = 100_000) -> None:
        """Step until the turns are over; a listener takes all audio at once."""
        for _ in range(steps):
            if all(turn in self.ended for turn in turns):
                return
            for turn, pieces in self.audio.items():
                self.core.consumed(turn, sum(map(len, pieces)))
            worked = self.core.step()
            assert worked or all(turn in self.ended for turn in turns), "a standstill"
        raise AssertionError("it does not end")

    def speak(self, turn: int, *texts: str, **spec: Any) -> np.ndarray:
        """A whole turn: float32 ``[n]``."""
        self.open(turn, segments(*texts), **spec)
        self.run(turn)
        assert isinstance(self.ended[turn], Spoken), self.ended[turn]
        return self.heard(turn)

    def heard(self, turn: int) -> np.ndarray:
        return np.concatenate(self.audio[turn])
