"""Draws a run's faults from a seed.

Faults come one at a time, with time to recover between them. All kinds come in shuffled order, then
all again, until the time is used up.
"""

import random
from collections.abc import Sequence
from typing import Final, Self

import msgspec
from rich.table import Table

from verify.chaos import kinds
from verify.chaos.kinds import Kind, Topology

FIRST_AT_S: Final = 5.0
RECOVERY_S: Final = 6.0


class UnknownKindError(ValueError):
    """The topology has no fault of this name; the message lists those it has."""


class Injection(msgspec.Struct, frozen=True):
    """One fault to come, ``at_s`` after the clients began.

    ``dice`` seeds the choices made at injection: which worker, session or server.
    """

    at_s: float
    kind: str
    seconds: float
    dice: int

    def random(self) -> random.Random:
        """The generator of every choice in this injection."""
        return random.Random(self.dice)


class Schedule(msgspec.Struct, frozen=True):
    """A run's faults, in their order."""

    seed: int
    topology: Topology
    injections: tuple[Injection, ...]

    @classmethod
    def make(
        cls,
        seed: int,
        topology: Topology,
        seconds: float,
        kinds: Sequence[str] | None = None,
        *,
        recovery_s: float = RECOVERY_S,
    ) -> Self:
        """Draw faults for ``seconds``: of all kinds that the topology has, or of those named.

        Raises:
            UnknownKindError: The topology does not have one of them.
        """
        rng = random.Random(f"{seed} {topology}")
        deck = _deck(topology, kinds)
        injections: list[Injection] = []
        at_s = FIRST_AT_S
        full = not deck
        while not full:
            for kind in rng.sample(deck, len(deck)):
                lasts = round(rng.uniform(*kind.seconds), 2)
                dice = rng.randrange(1 << 32)
                if at_s + lasts + recovery_s > seconds:
                    full = True  # though a shorter one of this deal may fit
                    continue
                injections.append(Injection(round(at_s, 2), kind.name, lasts, dice))
                at_s += lasts + recovery_s
        return cls(seed, topology, tuple(injections))

    def table(self) -> Table:
        """The schedule as a table."""
        table = Table(title=f"seed {self.seed}, {self.topology}", title_justify="left")
        for column in ("at, s", "fault", "lasts, s", "dice"):
            table.add_column(column, justify="left" if column == "fault" else "right")
        for one in self.injections:
            table.add_row(f"{one.at_s:.1f}", one.kind, f"{one.seconds:.1f}", str(one.dice))
        return table


def _deck(topology: Topology, names: Sequence[str] | None) -> list[Kind]:
    known = {kind.name: kind for kind in kinds.of(topology)}
    for name in names or ():
        if name not in known:
            raise UnknownKindError(f"{topology} has no fault {name!r}: it has {', '.join(known)}")
    return [known[name] for name in names or known]
