"""Where a reader stands in a session's audio stream, and whether what comes next may come next."""

from typing import Final, cast

from voicefleet.producer.errors import StreamGap
from voicefleet.producer.redis_client import RedisClient, StreamEntry
from voicefleet.schemas import AudioEntry, End, EntryId, Start

OLDEST: Final = EntryId(0, 0)
"""Before everything: reading begins with the oldest entry that the stream still holds."""

NOW: Final = "$"
"""As in XREAD: reading begins with what comes from now on."""

_LAST_N: Final = 2**64 - 1


class Cursor:
    """A place in the stream, moved on entry by entry; it finds gaps.

    ``last`` is the id of the last entry seen. The entry after it is the next one of its turn or,
    after an end, the first of a later turn: its start, or its end at ``<turn>-1`` where it ended
    unspoken. Numbers of turns may be left out: those of turns that a failover has forgotten.
    """

    __slots__ = ("_at_end", "last")

    def __init__(self, last: EntryId = OLDEST, *, at_end: bool | None = None) -> None:
        """``at_end``: whether the entry ``last`` is an end; ``None`` where that is not known."""
        self.last = last
        self._at_end = at_end

    @classmethod
    def after(cls, entry: StreamEntry | None) -> "Cursor":
        """Behind ``entry``; without one, before the oldest entry that is kept."""
        if entry is None:
            return cls()
        raw_id, fields = entry
        return cls(EntryId.parse(raw_id), at_end=fields.get(b"event") == b"end")

    @classmethod
    def before_turn(cls, turn: int) -> "Cursor":
        """Before the first entry of ``turn``: the id directly below it."""
        return cls(EntryId(turn - 1, _LAST_N) if turn > 0 else OLDEST)

    @classmethod
    async def find(cls, redis: RedisClient, key: str, after: EntryId | str | None) -> "Cursor":
        """Behind an entry id or ``NOW``; ``None``: before the oldest entry that is kept."""
        if after is None:
            return cls()
        if after == NOW:
            return cls.after(first(await redis.call("XREVRANGE", key, "+", "-", "COUNT", 1)))
        at = after if isinstance(after, EntryId) else EntryId.parse(after)
        entry = first(await redis.call("XRANGE", key, str(at), str(at)))
        return cls(at) if entry is None else cls.after(entry)

    def reset(self) -> None:
        """Start over: the next entry may be any."""
        self.last = OLDEST
        self._at_end = None

    def advance(self, entry: AudioEntry) -> None:
        """Move on to ``entry``.

        Raises:
            StreamGap: Entries between the last one and this one are missing.
        """
        if self.last != OLDEST and not self._follows(entry):
            raise StreamGap(self.last, entry.id)
        self.last = entry.id
        self._at_end = isinstance(entry, End)

    def _follows(self, entry: AudioEntry) -> bool:
        if entry.id.turn == self.last.turn:
            return entry.id.n == self.last.n + 1
        if self._at_end is False or (self._at_end is None and entry.id.turn != self.last.turn + 1):
            return False
        return isinstance(entry, Start) or (isinstance(entry, End) and entry.id.n == 1)


def first(entries: object) -> StreamEntry | None:
    """The first entry of a reply to XRANGE or XREVRANGE."""
    return next(iter(cast(list[StreamEntry], entries)), None)
