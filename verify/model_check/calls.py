"""What workers ask of the server: the one place that knows the scripts' KEYS and ARGV.

Follows ``worker.store.ledger``, ``worker.store.backlog`` and ``worker.intake.queue_reader``.
"""

from typing import NamedTuple, cast

from voicefleet.schemas.keys import BACKLOG, GROUP, ORPHANS, Keys
from voicefleet.wire.link import Command
from voicefleet.worker.publish.outbox import Outbox
from voicefleet.worker.store import scripts
from voicefleet.worker.store.lease_states import Claim

KEYS = Keys("x")
MODEL = "m"
TTL_MS = "3600000"
QUEUE, WAKE, ORDER = KEYS.requests(MODEL), KEYS.wake(MODEL), KEYS.order(MODEL)
BACKLOG_KEYS = (QUEUE, WAKE, KEYS.backlog(MODEL), KEYS.books(MODEL), KEYS.ranks(MODEL))
MOST_WAITING, CONVERSATION_MS = "64", "30000"
NO_TICKET = "?"


HIDDEN = (TTL_MS, MOST_WAITING, CONVERSATION_MS, GROUP, ORPHANS, BACKLOG, MODEL, "", "0")


class Call(NamedTuple):
    """One call. ``epoch``, where it carries one, belongs into ``args`` at ``at``."""

    kind: str
    keys: tuple[str, ...]
    args: tuple[str, ...]
    session: str = ""
    epoch: int = 0
    at: int = 0

    def __str__(self) -> str:
        said = [a for a in self.args if a not in HIDDEN]
        if self.kind in ("append", "finish"):
            turn, n = self.args[:2]
            said = [f"{turn}-{n}", f"+{self.args.count('pcm')}"] if self.kind == "append" else []
            said = said or [f"{turn}-{n}", self.args[self.args.index("reason") + 1]]
        epoch = [f"epoch {self.epoch}"] if self.epoch else []
        return " ".join([self.kind, *epoch, *said])


def session_keys(session: str) -> tuple[str, ...]:
    return (
        KEYS.lease(session),
        KEYS.audio(session),
        KEYS.session(session),
        KEYS.spoken(session),
        KEYS.refused(session),
    )


def all_keys(sessions: tuple[str, ...]) -> tuple[str, ...]:
    """Every key that the fleet may touch."""
    return (ORDER, *BACKLOG_KEYS, *(key for session in sessions for key in session_keys(session)))


def read(worker: str) -> Call:
    """The reader's blocked read, in the moment it is answered."""
    args = ("XREADGROUP", "GROUP", GROUP, worker, "COUNT", "1", "STREAMS", QUEUE, ">")
    return Call("XREADGROUP", (QUEUE,), args)


def take(worker: str) -> Call:
    return Call("take", BACKLOG_KEYS, (GROUP, ORPHANS, BACKLOG, worker))


def park(worker: str, entry: str) -> Call:
    return Call("park", BACKLOG_KEYS, (GROUP, ORPHANS, BACKLOG, worker, entry))


def adopt(worker: str, entry: str) -> Call:
    return Call("adopt", BACKLOG_KEYS, (GROUP, ORPHANS, BACKLOG, worker, entry))


def delivered(call: Call, reply: object) -> tuple[str, str] | None:
    """The entry and the claim that ``read``, ``take`` or ``adopt`` gave, if any."""
    if call.kind == "XREADGROUP":
        if reply is None:
            return None
        ((_, entries),) = cast(tuple[tuple[str, tuple[tuple[str, object], ...]]], reply)
        return entries[0][0], Claim.FRESH
    taken = cast(tuple[str, ...], reply)
    return (taken[1], taken[0]) if taken else None


def hand_back(worker: str, *entries: str) -> Call:
    return Call("orphan", (QUEUE, WAKE), (GROUP, ORPHANS, worker, *entries))


def bury(worker: str) -> Call:
    return Call("orphan", (QUEUE, WAKE), (GROUP, ORPHANS, worker))


def settle(session: str, request: str, entry: str) -> Call:
    keys = (QUEUE, ORDER, KEYS.lease(session), KEYS.spoken(session))
    return Call("settle", keys, (GROUP, entry, MODEL, request))


def enqueue(session: str, request: str, entry: str) -> Call:
    lease, _, record, spoken, refused = session_keys(session)
    args = (request, entry, MODEL, "0", TTL_MS, MOST_WAITING, CONVERSATION_MS)
    return Call("enqueue", (lease, record, spoken, refused, QUEUE, ORDER), args, session)


def acquire(
    session: str,
    request: str,
    entry: str,
    claim: str,
    worker: str,
    last_turn: int = 0,
    last_epoch: int = 0,
) -> Call:
    """``last_turn`` and ``last_epoch`` are those of a claim made again. It has no ticket yet."""
    keys = (*session_keys(session), QUEUE, ORDER)
    args = (claim, request, entry, MODEL, worker, TTL_MS, str(last_turn))
    if not last_epoch:
        return Call("acquire", keys, (*args, "", NO_TICKET), session)
    return Call("acquire", keys, (*args, NO_TICKET), session, last_epoch, len(args))


def ticket(call: Call) -> str:
    """What tells a call of ``acquire`` from others for its entry, and not from its own copies."""
    return call.args[-1]


def with_ticket(call: Call, ticket: str) -> Call:
    return call._replace(args=(*call.args[:-1], ticket))


def begin_attempt(session: str, epoch: int) -> Call:
    return Call("attempt", (KEYS.lease(session),), ("1",), session, epoch)


def release(session: str, epoch: int, *, blameless: bool) -> Call:
    return Call("release", (KEYS.lease(session),), ("1" if blameless else "0",), session, epoch)


def abandon(session: str, entry: str, owner: str) -> Call:
    return Call("abandon", (KEYS.lease(session),), (entry, MODEL, owner), session)


def published(outbox: Outbox, command: Command) -> Call:
    """A command that an outbox wants to leave; its epoch is filled in later."""
    _, sha, count, *rest = command
    kind = "append" if sha == scripts.APPEND.sha else "finish"
    keys, args = rest[: int(count)], rest[int(count) + 1 :]
    said = tuple(a.decode() if isinstance(a, bytes) else str(a) for a in args)
    return Call(kind, tuple(str(key) for key in keys), said, outbox.opening.session)
