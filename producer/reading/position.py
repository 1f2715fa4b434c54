"""Finding the place in an audio stream from which a listener reads."""

from typing import cast

from voicefleet.producer.reading.continuity import OLDEST, Continuity, just_before
from voicefleet.producer.redis_client import RedisClient, StreamEntry
from voicefleet.schemas import EntryId

NOW = "$"
"""As in XREAD: only what comes from now on."""


def continuity_after(entry: StreamEntry | None) -> Continuity:
    """Reading that begins after ``entry``, or with whatever comes first where there is none."""
    if entry is None:
        return Continuity(OLDEST)
    raw_id, fields = entry
    return Continuity(EntryId.parse(raw_id), over=fields.get(b"event") == b"end")


def from_turn(turn: int) -> Continuity:
    """Reading that begins with the first entry of ``turn``."""
    return Continuity(just_before(EntryId(turn, 0)))


async def find(redis: RedisClient, key: str, after: EntryId | str | None) -> Continuity:
    """The place after an entry id, ``NOW``, or ``None`` for the oldest entry that is kept.

    Raises:
        ValueError: ``after`` is none of these.
    """
    if after is None:
        return Continuity(OLDEST)
    if after == NOW:
        return continuity_after(first(await redis.call("XREVRANGE", key, "+", "-", "COUNT", 1)))
    at = after if isinstance(after, EntryId) else EntryId.parse(after)
    entry = first(await redis.call("XRANGE", key, str(at), str(at)))
    return Continuity(at) if entry is None else continuity_after(entry)


def first(entries: object) -> StreamEntry | None:
    """The first entry of a reply to XRANGE or XREVRANGE."""
    return next(iter(cast(list[StreamEntry], entries)), None)
