"""The loads under which an engine or a fleet is measured: which turns are requested when."""

import random
from typing import Final, Protocol

import msgspec

from bench.cosyvoice.texts import SECONDS, draw

SPREAD_S: Final = 2.0
"""The listeners of a closed load start spread over this time."""


class Ask(msgspec.Struct, frozen=True):
    """One turn. ``at`` is when it is requested, ``stop_at`` when its listener stops it.

    Both in seconds on the monotonic clock. ``paced``: the listener plays in real time; otherwise
    audio counts as consumed as soon as it is made.
    """

    at: float
    text: str
    seed: int
    paced: bool = True
    stop_at: float | None = None


class Load(Protocol):
    """Yields turns as they fall due."""

    name: str

    def begin(self, now: float) -> None:
        """Start the load's clock."""
        ...

    def due(self, now: float) -> list[Ask]:
        """The turns to request by now, each returned once."""
        ...

    def ended(self, at: float) -> None:
        """Take note that a listener has heard, or will have heard, a turn to its end at ``at``."""
        ...

    def next_at(self) -> float:
        """When the next known turn falls due; infinity if none is known."""
        ...


class Turns:
    """A list of scheduled turns: the base class of loads.

    Args:
        name: The name in reports.
        seed: The seed of texts and times.
        seconds: The shortest and the longest text, in seconds of speech.
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
        """Schedule a turn."""
        self._count += 1
        stop_at = None if self._stop_after is None else at + self.chance.uniform(*self._stop_after)
        text = draw(self.chance, *self._seconds)
        self._known.append(Ask(at, text, self._count, self._paced, stop_at))


class Closed(Turns):
    """``sessions`` listeners; each requests its next turn after the last one, for ``seconds``.

    ``together``: all start at the same moment, which is the hardest start.
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
    """An open load: ``rate`` independent turns per second, for ``seconds``."""

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
