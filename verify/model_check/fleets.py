"""The fleets that are explored: few workers, few requests, few faults."""

from typing import NamedTuple


class Request(NamedTuple):
    """A request on the queue. One that is rejected or late is answered unspoken."""

    entry: str
    session: str
    name: str
    frames: int
    is_rejected: bool = False
    is_late: bool = False

    @property
    def is_unspoken(self) -> bool:
        """Whether it is to be answered without a word."""
        return self.is_rejected or self.is_late


class Faults(NamedTuple):
    """How often each fault may happen on one path."""

    crashes: int = 0
    losses: int = 0
    """Connections lost: sent calls may be executed at any later time, and are sent again."""
    false_deaths: int = 0
    """Workers that are alive and declared dead."""
    failures: int = 0
    """Engines that fail during a turn."""
    drains: int = 0
    failovers: int = 0
    """The server's data return to an earlier state of the path."""


class Fleet(NamedTuple):
    """One configuration. Unless ``splits``, each turn is made and sent in one batch."""

    name: str
    requests: tuple[Request, ...]
    faults: Faults
    workers: int = 2
    slots: int = 1
    max_deliveries: int = 3
    splits: bool = False
    checks_record: bool = True
    reconciles: bool = True

    @property
    def sessions(self) -> tuple[str, ...]:
        """The sessions of all requests, sorted."""
        return tuple(sorted({request.session for request in self.requests}))


ONE = (Request("1-0", "s", "a", 1),)
LONG = (Request("1-0", "s", "a", 2),)
TWO = (Request("1-0", "s", "a", 1), Request("2-0", "s", "b", 1))
TWICE = (Request("1-0", "s", "a", 1), Request("2-0", "s", "a", 1))
REJECTED = (Request("1-0", "s", "a", 1), Request("2-0", "s", "b", 1, is_rejected=True))
LATE = (Request("1-0", "s", "a", 1), Request("2-0", "s", "b", 1, is_late=True))
APART = (Request("1-0", "s", "a", 1), Request("2-0", "t", "b", 1))
THREE = (*TWO, Request("3-0", "s", "c", 1))
