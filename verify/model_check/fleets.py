"""The fleets that are explored: few workers, few requests, and how much may go wrong."""

from typing import NamedTuple


class Ask(NamedTuple):
    """A request on the queue. One that is rejected, or late, is answered without a word."""

    entry: str
    session: str
    name: str
    frames: int
    is_rejected: bool = False
    is_late: bool = False

    @property
    def is_unspoken(self) -> bool:
        return self.is_rejected or self.is_late


class Faults(NamedTuple):
    """How often each may happen on one path."""

    crashes: int = 0
    losses: int = 0
    """Connections lost: what was sent may be executed at any later time, and is sent again."""
    burials: int = 0
    """Live workers declared dead."""
    failures: int = 0
    """Engines that fail in mid-turn."""
    drains: int = 0
    failovers: int = 0
    """The server's data go back to an earlier state of the path."""


class Fleet(NamedTuple):
    """One configuration. Unless ``splits``, a turn is made at once and leaves in one batch."""

    name: str
    asks: tuple[Ask, ...]
    faults: Faults
    workers: int = 2
    slots: int = 1
    max_deliveries: int = 3
    splits: bool = False
    checks_record: bool = True
    reconciles: bool = True

    @property
    def sessions(self) -> tuple[str, ...]:
        return tuple(sorted({ask.session for ask in self.asks}))


ONE = (Ask("1-0", "s", "a", 1),)
LONG = (Ask("1-0", "s", "a", 2),)
TWO = (Ask("1-0", "s", "a", 1), Ask("2-0", "s", "b", 1))
TWICE = (Ask("1-0", "s", "a", 1), Ask("2-0", "s", "a", 1))
REJECTED = (Ask("1-0", "s", "a", 1), Ask("2-0", "s", "b", 1, is_rejected=True))
LATE = (Ask("1-0", "s", "a", 1), Ask("2-0", "s", "b", 1, is_late=True))
APART = (Ask("1-0", "s", "a", 1), Ask("2-0", "t", "b", 1))
THREE = (*TWO, Ask("3-0", "s", "c", 1))
