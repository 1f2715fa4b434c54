"""Entry ids of audio streams, as the protocol's text has them: ``<turn>-<n>``."""

from typing import Final, NamedTuple


class Id(NamedTuple):
    """An entry's id, ordered as the stream orders it."""

    turn: int
    n: int

    def __str__(self) -> str:
        return f"{self.turn}-{self.n}"

    @classmethod
    def parse(cls, raw: str) -> "Id":
        """Raises ``ValueError`` where it is none."""
        turn, _, n = raw.partition("-")
        return cls(int(turn), int(n))


NOWHERE: Final = Id(0, 0)
"""Before all entries."""
