"""What workers ask of the server, as values: calls without times, epochs and tickets.

Follows ``worker.store.queues``, ``sessions`` and ``backlog``, and ``worker.intake.queue_reader``.
"""

from typing import Any, NamedTuple

from voicefleet.schemas.keys import BACKLOG, GROUP, ORPHANS, Keys
from voicefleet.worker.store.lease_states import Claim
from voicefleet.worker.store.scripts.queue import Adopt, Orphan, Park, Settle, Take
from voicefleet.worker.store.scripts.script import BacklogKeys, OrderKeys, SessionKeys
from voicefleet.worker.store.scripts.script import Call as Script
from voicefleet.worker.store.scripts.session import (
    Abandon,
    Acquire,
    Append,
    Attempt,
    Enqueue,
    Finish,
    Release,
)

KEYS = Keys("x")
MODEL = "m"
TTL_MS = 3_600_000
QUEUE = KEYS.requests(MODEL)
ORDER_KEYS = OrderKeys.of(KEYS, MODEL)
BACKLOG_KEYS = BacklogKeys.of(KEYS, MODEL)
MAX_WAITING, CONVERSATION_MS = 64, 30_000
READ = "XREADGROUP"
"""The kind of the one call that is not a script's."""

EPOCH, TICKET = "<epoch>", "<ticket>"
"""Stand for ``Call.epoch`` and ``Call.ticket`` in ``Call.args``."""

HIDDEN = {GROUP, ORPHANS, BACKLOG, MODEL, EPOCH, TICKET, "", "0"} | {
    str(constant) for constant in (TTL_MS, MAX_WAITING, CONVERSATION_MS)
}

_KINDS: tuple[type[Script[Any]], ...] = (
    *(Abandon, Acquire, Adopt, Append, Attempt, Enqueue),
    *(Finish, Orphan, Park, Release, Settle, Take),
)
KINDS = {kind.script.name: kind for kind in _KINDS}
"""The scripts, by the names of their files."""


class Call(NamedTuple):
    """One call. ``epoch`` is 0, and ``ticket`` empty, where the call carries none yet."""

    kind: str
    keys: tuple[str, ...]
    args: tuple[str, ...]
    session: str = ""
    epoch: int = 0
    ticket: str = ""
    label: str = ""

    @classmethod
    def of(cls, call: Script[Any], session: str = "", epoch: int = 0, label: str = "") -> "Call":
        """One call of a script; ``label`` is what a trace shows of its arguments."""
        args = tuple(a.decode() if isinstance(a, bytes) else str(a) for a in call.argv())
        label = label or " ".join(arg for arg in args if arg not in HIDDEN)
        return cls(call.script.name, tuple(call.key_list()), args, session, epoch, "", label)

    def __str__(self) -> str:
        epoch = f"epoch {self.epoch}" if self.epoch else ""
        return " ".join(filter(None, (self.kind, epoch, self.label, self.ticket)))

    def command(self, epoch: int) -> tuple[Any, ...]:
        """ARGV, or the whole command of ``READ``, for a server that knows our epoch as this one."""
        held = {EPOCH: epoch, TICKET: self.ticket}
        return tuple(held.get(arg, arg) for arg in self.args)

    def decode(self, reply: Any) -> Any:
        """Read the server's reply."""
        if self.kind != READ:
            return KINDS[self.kind].decode(reply)
        if reply is None:
            return None
        ((_, ((entry, _),)),) = reply
        return entry.decode(), {}, Claim.FRESH


def session_keys(session: str) -> SessionKeys:
    """The keys of one session."""
    return SessionKeys.of(KEYS, session)


def all_keys(sessions: tuple[str, ...]) -> tuple[str, ...]:
    """Every key that the fleet may touch."""
    own = (key for session in sessions for key in session_keys(session))
    return (ORDER_KEYS.order, *BACKLOG_KEYS, *own)


def read(worker: str) -> Call:
    """The reader's blocking read, at the moment it is answered."""
    args = ("XREADGROUP", "GROUP", GROUP, worker, "COUNT", "1", "STREAMS", QUEUE, ">")
    return Call(READ, (QUEUE,), args, label=worker)


def take(worker: str) -> Call:
    """Take the next request that waits for a slot."""
    return Call.of(Take(keys=BACKLOG_KEYS, worker=worker))


def park(worker: str, entry: str) -> Call:
    """Let a request wait for any worker's slot."""
    return Call.of(Park(keys=BACKLOG_KEYS, worker=worker, entries=[entry]))


def adopt(worker: str, entry: str) -> Call:
    """Take one given request out of the backlog."""
    return Call.of(Adopt(keys=BACKLOG_KEYS, worker=worker, entry=entry))


def hand_back(worker: str, *entries: str) -> Call:
    """Without ``entries``: everything that a dead worker had."""
    return Call.of(Orphan(requests=QUEUE, wake=BACKLOG_KEYS.wake, owner=worker, entries=entries))


def settle(session: str, request: str, entry: str) -> Call:
    """Delete an answered request's queue entry."""
    keys = session_keys(session)
    return Call.of(
        Settle(
            queue=ORDER_KEYS,
            lease=keys.lease,
            spoken=keys.spoken,
            entry=entry,
            model=MODEL,
            request=request,
        )
    )


def enqueue(session: str, request: str, entry: str) -> Call:
    """Get a place in the session's line."""
    keys = session_keys(session)
    enqueue = Enqueue(
        lease=keys.lease,
        session=keys.session,
        spoken=keys.spoken,
        refused=keys.refused,
        queue=ORDER_KEYS,
        request=request,
        entry=entry,
        model=MODEL,
        interrupts=False,
        ttl_ms=TTL_MS,
        most=MAX_WAITING,
        conversation_ms=CONVERSATION_MS,
    )
    return Call.of(enqueue, session)


def acquire(
    session: str,
    request: str,
    entry: str,
    claim: Claim,
    worker: str,
    last_turn: int = 0,
    last_epoch: int = 0,
) -> Call:
    """Ask for the lease; ``last_turn`` and ``last_epoch`` are those of a lease to regain."""
    acquire = Acquire(
        keys=session_keys(session),
        queue=ORDER_KEYS,
        claim=claim,
        request=request,
        entry=entry,
        model=MODEL,
        worker=worker,
        ttl_ms=TTL_MS,
        least_turn=last_turn,
        last_epoch=EPOCH if last_epoch else "",
        ticket=TICKET,
    )
    return Call.of(acquire, session, last_epoch)


def begin_attempt(session: str, epoch: int) -> Call:
    """Count an attempt at a turn."""
    attempt = Attempt(lease=KEYS.lease(session), epoch=EPOCH, begins=True)
    return Call.of(attempt, session, epoch)


def release(session: str, epoch: int, *, blameless: bool) -> Call:
    """Give up a turn before its end."""
    release = Release(lease=KEYS.lease(session), epoch=EPOCH, blameless=blameless)
    return Call.of(release, session, epoch)


def abandon(session: str, entry: str, owner: str) -> Call:
    """Give up a turn that nobody can end."""
    abandon = Abandon(lease=KEYS.lease(session), entry=entry, model=MODEL, owner=owner)
    return Call.of(abandon, session)


def published(session: str, call: Append | Finish) -> Call:
    """A call that an outbox collected; its epoch is filled in later."""
    if isinstance(call, Append):
        label = f"{call.turn}-{call.first} +{len(call.entries)}"
    else:
        label = f"{call.turn}-{call.number} {call.end['reason']}"
    return Call.of(call, session, label=label)
