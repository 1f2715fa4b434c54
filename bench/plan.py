"""How much is measured."""

from typing import Final

import msgspec


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of all benches.

    ``probes`` are single events timed for each latency, ``seconds`` a steady state's length,
    ``sessions`` the sizes of the load sweep, ``turns`` those of the memory bench, ``rounds`` how
    often each text is spoken by each Piper.
    """

    probes: int = 1000
    seconds: float = 15.0
    sessions: tuple[int, ...] = (8, 16, 32, 64, 100, 150, 200)
    turns: int = 2000
    rounds: int = 5


QUICK: Final = Plan(probes=100, seconds=3.0, sessions=(8, 64, 200), turns=400, rounds=1)
"""A minute and a half: shows that everything runs, not how fast it is."""
