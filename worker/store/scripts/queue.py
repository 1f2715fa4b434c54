"""Scripts on one model's queue and on its backlog: requests that wait for a slot."""

from collections.abc import Sequence
from typing import Final, cast

from voicefleet.schemas.fields import paired
from voicefleet.schemas.keys import BACKLOG, GROUP, ORPHANS
from voicefleet.wire.link import Reply
from voicefleet.worker.store.lease_states import Claim
from voicefleet.worker.store.scripts.script import (
    BacklogKeys,
    Call,
    Flag,
    Key,
    OptionalKey,
    OrderKeys,
    Script,
    T,
)

UNANSWERED: Final = -1
"""Reply of ``Settle``: the request has no answer, or a failover has forgotten it."""


# A model's queue.


class Orphan(Call[int], frozen=True, kw_only=True):
    """Hand requests back: any worker with a free slot may take them, and idle ones are woken.

    Replies how many there were.

    Args:
        owner: The worker in whose name they are.
        entries: The requests; none: all that the owner has, and the owner leaves the group.
    """

    script = Script("orphan")
    requests: Key
    wake: Key
    group: str = GROUP
    orphans: str = ORPHANS
    owner: str
    entries: Sequence[str] = ()


class Settle(Call[int], frozen=True, kw_only=True):
    """Take a request that is done off the queue and off the pending list.

    Replies 1 when it was there, 0 when it was not, or ``UNANSWERED``: then it stays.

    Args:
        lease: The session's, where the script is to check that the request was answered.
        spoken: As ``lease``.
    """

    script = Script("settle", after=["entry", "queue"])
    queue: OrderKeys
    lease: OptionalKey = None
    spoken: OptionalKey = None
    group: str = GROUP
    entry: str
    model: str
    request: str


class Earlier(Call[list[str]], frozen=True, kw_only=True):
    """Reply the names of the session's requests that stand before an entry of the queue."""

    script = Script("earlier", after=["entry", "queue"])
    queue: OrderKeys
    entry: str
    session: str

    @staticmethod
    def decode(reply: Reply) -> list[str]:
        """Read the names; each is what ``Acquire`` and ``Enqueue`` compare it with."""
        return [name.decode("utf-8", "replace") for name in cast(list[bytes], reply)]


class Later(Flag, frozen=True, kw_only=True):
    """Reply whether the session's request of this name stands behind an entry of the queue."""

    script = Script("later", after=["entry", "queue"])
    queue: OrderKeys
    entry: str
    session: str
    request: str


# A model's backlog.


class _OnBacklog(Call[T], frozen=True, kw_only=True):
    """A call in one worker's name. ``parked`` is the consumer that holds the backlog."""

    keys: BacklogKeys
    group: str = GROUP
    orphans: str = ORPHANS
    parked: str = BACKLOG
    worker: str


class _Taking(_OnBacklog[tuple[str, dict[bytes, bytes], Claim] | None], frozen=True):
    """Replies the entry, its fields, and how its session's lease is asked for."""

    @staticmethod
    def decode(reply: Reply) -> tuple[str, dict[bytes, bytes], Claim] | None:
        if not reply:
            return None
        claim, entry, fields = cast(tuple[bytes, bytes, list[bytes]], reply)
        return entry.decode(), paired(fields), Claim(claim.decode())


class Take(_Taking, frozen=True):
    """Take the next request for a free slot: one that was handed back, or the backlog's."""

    script = Script("take", after=["backlog"])


class Adopt(_Taking, frozen=True, kw_only=True):
    """Take this request, whichever is next; reply ``None`` if it no longer waits for a slot."""

    script = Script("adopt", after=["backlog"])
    entry: str


class Park(_OnBacklog[int], frozen=True, kw_only=True):
    """Let requests of the worker's wait for any worker's slot. Replies how many were parked."""

    script = Script("park", after=["backlog"])
    entries: Sequence[str]


class Promote(_OnBacklog[int], frozen=True, kw_only=True):
    """Put a parked request of a session in conversation before its tenant's others.

    Replies 1 when it is parked.
    """

    script = Script("promote", after=["backlog"])
    entry: str


class Keep(Flag, frozen=True, kw_only=True):
    """Become the backlog's keeper for ``ttl_ms``, or stay it; with 0, stop being it.

    Replies whether the worker is the keeper now.
    """

    script = Script("keep")
    keeper: Key
    worker: str
    ttl_ms: int
