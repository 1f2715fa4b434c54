"""The commands that each role of a fleet needs permission for on the server."""

import string
import uuid
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from voicefleet.schemas import Keys

_CONTAINERS: Final = ("ACL", "CLIENT", "CLUSTER", "SCRIPT", "XGROUP", "XINFO")

_READING: Final = """
XREAD COUNT 1 STREAMS {audio} 0
XRANGE {audio} - + COUNT 1
XREVRANGE {audio} + - COUNT 1
HGETALL {session}
HGETALL {worker}
HGETALL {model}
EXISTS {model}
ZRANGE {workers} 0 0
XLEN {requests}
XLEN {dead}
TIME
"""

_SPEAKING: Final = """
XADD {requests} NOMKSTREAM * doctor 1
XADD {text} NOMKSTREAM * doctor 1
EXPIRE {text} 5
XRANGE {text} - + COUNT 1
SET {control} resume EX 5
GET {control}
EXPIRE {control} 5
DEL {control}
"""

_WORKING: Final = """
HSET {lease} doctor 1
PEXPIRE {lease} 5000
HGET {lease} doctor
HGETALL {lease}
HMGET {lease} doctor
HINCRBY {lease} doctor 1
HKEYS {lease}
HDEL {lease} doctor
TYPE {lease}
DEL {lease}
ZADD {spoken} 1 doctor
PEXPIRE {spoken} 5000
ZSCORE {spoken} doctor
ZREMRANGEBYRANK {spoken} 0 -1
TYPE {spoken}
DEL {spoken}
LPUSH {refused} doctor
LINSERT {refused} AFTER doctor doctor
PEXPIRE {refused} 5000
LINDEX {refused} 0
LLEN {refused}
LPOP {refused}
TYPE {refused}
DEL {refused}
HSET {session} state idle
PEXPIRE {session} 5000
HGET {session} state
HDEL {session} state
TYPE {session}
DEL {session}
XADD {audio} NOMKSTREAM 1-0 doctor 1
XTRIM {audio} MAXLEN 10
XRANGE {audio} - + COUNT 1
XREVRANGE {audio} + - COUNT 1
PEXPIRE {audio} 5000
TYPE {audio}
DEL {audio}
XADD {text} NOMKSTREAM * doctor 1
XRANGE {text} - + COUNT 1
PEXPIRE {text} 5000
TYPE {text}
DEL {text}
GET {control}
XGROUP CREATE {requests} workers 0
XREADGROUP GROUP workers doctor COUNT 1 STREAMS {requests} >
XPENDING {requests} workers - + 1
XCLAIM {requests} workers doctor 1 1-0 JUSTID
XINFO CONSUMERS {requests} workers
XRANGE {requests} - + COUNT 1
XLEN {requests}
XACK {requests} workers 1-0
XDEL {requests} 1-0
XGROUP DELCONSUMER {requests} workers doctor
TYPE {requests}
SET {wake} 1 PX 5000
GET {wake}
ZADD {order} 0 doctor
PEXPIRE {order} 5000
ZRANGEBYLEX {order} - + LIMIT 0 1
ZREM {order} doctor
ZADD {backlog} 0 doctor
PEXPIRE {backlog} 5000
ZRANGE {backlog} 0 0
ZCARD {backlog}
ZSCORE {backlog} doctor
ZREM {backlog} doctor
TYPE {backlog}
DEL {backlog}
HSET {books} doctor 1
PEXPIRE {books} 5000
HMGET {books} doctor
TYPE {books}
DEL {books}
ZADD {ranks} 0 doctor
PEXPIRE {ranks} 5000
ZRANGEBYLEX {ranks} - + LIMIT 0 1
ZREM {ranks} doctor
TYPE {ranks}
DEL {ranks}
SET {keeper} doctor PX 5000
GET {keeper}
TYPE {keeper}
DEL {keeper}
HSET {worker} doctor 1
PEXPIRE {worker} 5000
HGET {worker} doctor
HMGET {worker} doctor
TYPE {worker}
DEL {worker}
HSET {model} doctor 1
PEXPIRE {model} 5000
TYPE {model}
DEL {model}
ZADD {workers} XX 1 {name}
ZRANGE {workers} 0 0
ZRANGEBYSCORE {workers} -inf -inf LIMIT 0 1
ZREMRANGEBYSCORE {workers} -inf -inf
ZREM {workers} {name}
TYPE {workers}
XADD {dead} NOMKSTREAM 0-0 doctor 1
SCRIPT LOAD return
CLIENT ID
CLIENT UNBLOCK 0
CLIENT TRACKING ON
PING
TIME
"""
"""On a queue that does not exist: the server answers NOGROUP, or with nothing. ``DEL`` of the
fleet's list of workers is not tried: it would delete the list."""

_SCRIPTED: Final = (
    *("lease", "audio", "session", "spoken", "refused", "text", "requests"),
    *("wake", "order", "backlog", "books", "ranks", "keeper", "worker"),
)
"""The keys that scripts get as KEYS."""


class Attempt(msgspec.Struct, frozen=True):
    """A command to try, and the key it is on, if any.

    ``pattern`` is the ACL pattern of all keys of that kind.
    """

    words: tuple[str, ...]
    key: str = ""
    pattern: str = ""

    @property
    def name(self) -> str:
        """The command's full name, such as ``XGROUP CREATE``."""
        return " ".join(self.words[: 2 if self.words[0] in _CONTAINERS else 1])


class Role(msgspec.Struct, frozen=True):
    """What a user of the server may be for, and the commands it then needs.

    Only a user of this role has permission for the first one. The commands are real, on keys that
    nobody else uses and that are missing or deleted afterwards.
    """

    name: str
    attempts: tuple[Attempt, ...]


def roles(keys: Keys) -> tuple[Role, Role, Role]:
    """Clients, workers and observers of the fleet with these keys."""
    name = f"doctor-{uuid.uuid4().hex}"
    mine, all_of_them = _named(keys, name), _named(keys, "*")
    reading, speaking, working = (
        tuple(_attempts(text, mine, all_of_them)) for text in (_READING, _SPEAKING, _WORKING)
    )
    scripted = tuple(
        Attempt((*run, "1", mine[kind]), mine[kind], all_of_them[kind])
        for kind in _SCRIPTED
        for run in (("EVAL", "return 1"), ("EVALSHA", "0" * 40))
    )
    return (
        Role("clients", speaking + reading),
        Role("workers", working + scripted),
        Role("observers", reading),
    )


def _named(keys: Keys, name: str) -> dict[str, str]:
    """One key of each kind, for a session, request, worker or model of this name."""
    single = (keys.lease, keys.spoken, keys.refused, keys.session, keys.audio, keys.control)
    queued = (keys.requests, keys.wake, keys.order, keys.backlog, keys.books)
    queued += (keys.ranks, keys.keeper)
    others = (keys.worker, keys.model)
    named = {key.__name__: key(name) for key in (*single, *queued, *others)}
    return named | {
        "text": keys.text(name, name),
        "workers": keys.workers,
        "dead": keys.dead,
        "name": name,
    }


def _attempts(
    text: str, mine: Mapping[str, str], all_of_them: Mapping[str, str]
) -> Iterator[Attempt]:
    for line in text.strip().splitlines():
        kinds = [kind for _, kind, _, _ in string.Formatter().parse(line) if kind]
        words = tuple(word.format_map(mine) for word in line.split())
        if kinds:
            yield Attempt(words, mine[kinds[0]], all_of_them[kinds[0]])
        else:
            yield Attempt(words)
