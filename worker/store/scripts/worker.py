"""Scripts on a worker's record."""

from collections.abc import Mapping
from typing import cast

from voicefleet.wire.link import Argument, Reply
from voicefleet.worker.store.scripts.script import Call, Flag, Key, Script


class Beat(Call[int | None], frozen=True, kw_only=True):
    """Renew a worker's record in server time.

    Replies the server's unix ms; ``None``: a living worker of another instance has this name.

    Args:
        living_ms: The record of another instance that is older is a dead worker's.
        merges: Whether the record has the same fields as before.
    """

    script = Script("beat")
    record: Key
    instance: str
    ttl_ms: int
    living_ms: int
    merges: bool
    fields: Mapping[str, Argument]

    @staticmethod
    def decode(reply: Reply) -> int | None:
        """Read the server's time."""
        return None if reply is None else int(cast(bytes, reply))


class Depart(Flag, frozen=True, kw_only=True):
    """Remove a worker's record, if it is still this instance's. Replies whether it was."""

    script = Script("depart")
    record: Key
    instance: str
