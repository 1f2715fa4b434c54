"""Parses replies of XREAD on audio streams, without the audio."""

from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple


class Kind(IntEnum):
    """The three kinds of entries."""

    START = 0
    FRAME = 1
    END = 2


class Entry(NamedTuple):
    """An entry's turn, number and kind; the next read continues at ``id``."""

    turn: int
    n: int
    kind: Kind
    id: bytes


def entries(stream: list[Any]) -> Iterator[Entry]:
    """The entries of one stream of a reply: ``[key, [[id, [field, value, ...]], ...]]``."""
    for entry_id, fields in stream[1]:
        turn, _, n = entry_id.partition(b"-")
        if fields[0] == b"pcm":
            kind = Kind.FRAME
        else:
            kind = Kind.START if fields[1] == b"start" else Kind.END
        yield Entry(int(turn), int(n), kind, entry_id)
