"""Who asks for what, and when: the loads under which an engine or a fleet is measured."""

import random
from typing import Final, Protocol

import msgspec

from bench.cosyvoice.texts import SECONDS, draw

SPREAD_S: Final = 2.0
"""Listeners of a closed loop come in over this time."""


class Ask(msgspec.Struct, frozen=True):
    """One turn. ``at`` is when it is asked for, ``stop_at`` when its listener has had enough.

    Seconds on the monotonic clock. ``paced``: the listener listens in real time; else all audio
    counts as taken when it is made.
    """

    at: float
    text: str
    seed: int
    paced: bool = True
    stop_at: float | None = None


class Load(Protocol):
    """Gives out turns as they fall due."""

    name: str

    def begin(self, now: float) -> None:
        """The clock starts."""
        ...

    def due(self, now: float) -> list[Ask]:
        """What is to be asked for by now, each once."""
        ...

    def ended(self, at: float) -> None:
        """One listener has heard a turn to its end, or will have at that time."""
        ...

    def next_at(self) -> float:
        """When the next known turn falls due; infinity: none is known."""
        ...


class Turns:
    """Turns that are known of, in the order of their times. Base of the loads.

    Args:
        name: For reports.
        seed: Of texts and times.
        seconds: The shortest and longest text.
        paced: See ``Ask``.
    """

    def __init__(
        self,
        name: str,
        seed: int,
        seconds: tuple[float, float] = SECONDS,
        *,
        paced: bool = True,
        stop_after: tuple[float, float] | None = None,
    ) -> None:
        self.name = name
        self.chance = random.Random(seed)
        self._seconds = seconds
        self._paced = paced
        self._stop_after = stop_after
        self._known: list[Ask] = []
        self._count = 0

    def begin(self, now: float) -> None:
        """See ``Load``."""

    def ended(self, at: float) -> None:
        """See ``Load``."""

    def due(self, now: float) -> list[Ask]:
        """See ``Load``."""
        due = [ask for ask in self._known if ask.at <= now]
        self._known = [ask for ask in self._known if ask.at > now]
        return due

    def next_at(self) -> float:
        """See ``Load``."""
        return min((ask.at for ask in self._known), default=float("inf"))

    def ask(self, at: float) -> None:
        """A turn will be asked for."""
        self._count += 1
        stop_at = None if self._stop_after is None else at + self.chance.uniform(*self._stop_after)
        text = draw(self.chance, *self._seconds)
        self._known.append(Ask(at, text, self._count, self._paced, stop_at))


class Closed(Turns):
    """``sessions`` listeners; each asks again when it has heard its turn, until ``seconds`` are up.

    ``together``: all ask at the same moment first, the hardest beginning.
    """

    def __init__(
        self,
        sessions: int,
        seconds: float,
        *,
        together: bool = False,
        paced: bool = True,
        stop_after: tuple[float, float] | None = None,
        name: str = "closed",
        texts: tuple[float, float] = SECONDS,
    ) -> None:
        super().__init__(name, sessions, texts, paced=paced, stop_after=stop_after)
        self._sessions = sessions
        self._together = together
        self._lasts = seconds
        self._until = 0.0

    def begin(self, now: float) -> None:
        """See ``Load``."""
        self._until = now + self._lasts
        for _ in range(self._sessions):
            self.ask(now + (0.0 if self._together else self.chance.uniform(0, SPREAD_S)))

    def ended(self, at: float) -> None:
        """See ``Load``."""
        if at < self._until:
            self.ask(at)


class Poisson(Turns):
    """Listeners who know nothing of each other: ``rate`` turns a second for ``seconds``."""

    def __init__(self, rate: float, seconds: float, texts: tuple[float, float] = SECONDS) -> None:
        super().__init__("open", round(1000 * rate), texts)
        self._rate = rate
        self._lasts = seconds

    def begin(self, now: float) -> None:
        """See ``Load``."""
        at = now + self.chance.expovariate(self._rate)
        while at < now + self._lasts:
            self.ask(at)
            at += self.chance.expovariate(self._rate)
