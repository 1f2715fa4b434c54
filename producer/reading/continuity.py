"""Where a reader stands in an audio stream, and whether what comes next may come next."""

from typing import Final

from voicefleet.producer.errors import StreamGap
from voicefleet.schemas import AudioEntry, End, EntryId, Start

OLDEST: Final = EntryId(0, 0)
"""Before everything: a reader that starts here gets whatever the stream still holds."""

_LAST_N: Final = 2**64 - 1


def just_before(entry: EntryId) -> EntryId:
    """The id directly below ``entry``: reading after it begins with ``entry`` itself."""
    if entry.n > 0:
        return EntryId(entry.turn, entry.n - 1)
    return EntryId(entry.turn - 1, _LAST_N) if entry.turn > 0 else OLDEST


class Continuity:
    """Checks that entries are dense: frame after frame, turn after turn, no turn before an end.

    ``last`` is the id of the last entry seen. A turn that ends unspoken has its end at
    ``<turn>-1`` and no start. Behind an end, numbers of turns may be left out: those of turns that
    a failover has forgotten whole.
    """

    __slots__ = ("_over", "last")

    def __init__(self, after: EntryId = OLDEST, *, over: bool | None = None) -> None:
        """``over``: whether the entry ``after`` is an end; ``None`` where that is not known."""
        self.last = after
        self._over = over

    def forget(self) -> None:
        """Start over: the next entry may be any."""
        self.last = OLDEST
        self._over = None

    def advance(self, entry: AudioEntry) -> None:
        """Take ``entry`` as the next one.

        Raises:
            StreamGap: Entries between the last one and this one are missing.
        """
        if self.last != OLDEST and not self._follows(entry):
            raise StreamGap(self.last, entry.id)
        self.last = entry.id
        self._over = isinstance(entry, End)

    def _follows(self, entry: AudioEntry) -> bool:
        if entry.id.turn == self.last.turn:
            return entry.id.n == self.last.n + 1
        if self._over is False or (self._over is None and entry.id.turn != self.last.turn + 1):
            return False
        return isinstance(entry, Start) or (isinstance(entry, End) and entry.id.n == 1)
