"""Scripts on the keys of one session: its lease, its audio, who waits in it."""

from collections.abc import Mapping, Sequence
from typing import Final, cast

import msgspec

from voicefleet.wire.link import Argument, Command, Reply
from voicefleet.worker.store.lease_states import Claim, Standing
from voicefleet.worker.store.scripts.script import (
    Call,
    Flag,
    Key,
    OptionalKey,
    OrderKeys,
    Script,
    SessionKeys,
)

FENCED: Final = -2
"""Reply of ``Append`` and ``Finish``: a later owner holds the lease."""

FORGOTTEN: Final = -3
"""Reply of ``Append`` and ``Finish``: the server has forgotten the caller's lease."""

# The turn that holds a session's lease. ``epoch`` is the caller's: the fence.


class Append(Call[int], frozen=True, kw_only=True):
    """Append entries to the turn. Entries that are there already are skipped; a gap is refused.

    Replies the turn's last entry number, -1 for none, or ``FENCED`` or ``FORGOTTEN``.

    Args:
        first: The number of the first of ``entries``.
        ttl_ms: The new TTL of the session's keys, if they are due for one.
        keep_entries: How many of the stream's newest entries to keep, if it is due for trimming.
        resume: The point from which another worker can continue the turn.
        record: Fields to change in the session's record.
        entries: Field names and values of each entry, alternating.
    """

    script = Script("append", after=["entry", "fence"])
    keys: SessionKeys
    epoch: str
    turn: int
    first: int
    ttl_ms: int | None = None
    keep_entries: int | None = None
    resume: bytes = b""
    record: Mapping[str, Argument]
    entries: Sequence[Sequence[Argument]]

    def command(self) -> Command:
        """The EVALSHA command. The record and each entry are preceded by how many parts they have.

        Built without ``argv``, for speed: there is one for every few frames.
        """
        command: list[Argument] = [
            "EVALSHA",
            self.script.sha,
            len(self.keys),
            *self.keys,
            self.epoch,
            self.turn,
            self.first,
            "" if self.ttl_ms is None else self.ttl_ms,
            "" if self.keep_entries is None else self.keep_entries,
            self.resume,
            2 * len(self.record),
        ]
        for field in self.record.items():
            command += field
        for entry in self.entries:
            command.append(len(entry))
            command += entry
        return command

    def argv(self) -> Sequence[Argument]:
        """ARGV, as Redis is given them."""
        return self.command()[3 + len(self.keys) :]


class Finish(Call[int], frozen=True, kw_only=True):
    """End the turn: write its end entry and the session's new state in one step.

    Replies ``number`` when the end stands, the turn's last entry number when entries before it are
    missing, or ``FENCED`` or ``FORGOTTEN``.

    Args:
        text: The turn's text stream, if it has one: it is emptied.
        number: The number of the end entry.
        end: The fields of the end entry.
    """

    script = Script("finish", after=["entry", "fence", "refused"])
    keys: SessionKeys
    text: OptionalKey
    epoch: str
    turn: int
    number: int
    ttl_ms: int
    keep_entries: int
    end: Mapping[str, Argument]


class Mark(Call[int], frozen=True, kw_only=True):
    """Add a decision to the turn's text stream, behind the last entry that was read.

    Replies 1 when it stands, 0 when there is more to read or the lease is another's, -1 when it
    cannot be added.

    Args:
        after: The last entry read; ``-`` for none.
        entry: The new entry's id.
    """

    script = Script("mark", after=["entry", "fence"])
    lease: Key
    text: Key
    epoch: str
    after: str
    entry: str
    fields: Mapping[str, Argument]


class Attempt(Flag, frozen=True, kw_only=True):
    """Count another attempt at a turn, or with ``begins`` false count none of those so far.

    Replies whether the lease is the caller's.
    """

    script = Script("attempt")
    lease: Key
    epoch: str
    begins: bool


class Release(Flag, frozen=True, kw_only=True):
    """Give up the turn before its end; ``blameless`` does not count the attempt.

    Replies whether the lease was the caller's.
    """

    script = Script("release")
    lease: Key
    epoch: str
    blameless: bool


# A session, for requests that wait to be spoken in it.


class Acquired(msgspec.Struct, frozen=True):
    """The reply of ``Acquire``. The fields after ``standing`` are set when the lease is granted.

    ``last`` is the number of the turn's last published entry: 0 after the start entry alone, -1
    before it.
    """

    standing: Standing
    epoch: str = ""
    turn: int = 0
    last: int = -1
    attempts: int = 0
    resume: bytes = b""


class Acquire(Call[Acquired], frozen=True, kw_only=True):
    """Take the session's lease for one request, if it is that request's turn.

    Args:
        queue: The request's queue, where it is on the session's server.
        least_turn: The lowest number that the turn may have.
        last_epoch: The caller's epoch that the server forgot, if any.
        ticket: Unique to this call: sent again because the reply was lost, it changes nothing.
        earlier: Where the queue is on another server: what ``Earlier`` replied.
    """

    script = Script("acquire", after=["entry", "place", "queue", "refused"])
    keys: SessionKeys
    queue: OrderKeys | None = None
    claim: Claim
    request: str
    entry: str
    model: str
    worker: str
    ttl_ms: int
    least_turn: int = 0
    last_epoch: str = ""
    ticket: str
    earlier: Sequence[str] = ()

    @staticmethod
    def decode(reply: Reply) -> Acquired:
        """Read the standing, and the lease where it is granted."""
        standing, *rest = cast(list[bytes], reply)
        if not rest:
            return Acquired(Standing(standing.decode()))
        epoch, turn, last, attempts, resume = rest
        return Acquired(
            Standing(standing.decode()),
            epoch.decode(),
            int(turn),
            int(last),
            int(attempts),
            resume,
        )


class Enqueued(msgspec.Struct, frozen=True):
    """The reply of ``Enqueue``.

    ``interrupts``: the session's requests that were added before end now. ``talks``: the session
    is in conversation: it speaks, or has spoken lately.
    """

    standing: Standing
    interrupts: bool
    talks: bool


class Enqueue(Call[Enqueued], frozen=True, kw_only=True):
    """Let a request wait for its session.

    Args:
        queue: As for ``Acquire``, and so is ``earlier``.
        interrupts: Whether the request interrupts those before it.
        most: So many requests may wait in the session.
        conversation_ms: A session that has spoken within this time is in conversation.
    """

    script = Script("enqueue", after=["entry", "place", "queue", "refused"])
    lease: Key
    session: Key
    spoken: Key
    refused: Key
    queue: OrderKeys | None = None
    request: str
    entry: str
    model: str
    interrupts: bool
    ttl_ms: int
    most: int
    conversation_ms: int
    earlier: Sequence[str] = ()

    @staticmethod
    def decode(reply: Reply) -> Enqueued:
        """Read the standing and the two flags."""
        standing, interrupts, talks = cast(list[bytes], reply)
        return Enqueued(Standing(standing.decode()), interrupts == b"1", talks == b"1")


class Abandon(Flag, frozen=True, kw_only=True):
    """Give up an owner's turn that will never end, or its place among those that wait.

    Replies whether the turn was given up.

    Args:
        owner: The worker that holds the lease; empty where it gave the turn up before.
    """

    script = Script("abandon")
    lease: Key
    entry: str | bytes
    model: str | bytes
    owner: str | bytes
