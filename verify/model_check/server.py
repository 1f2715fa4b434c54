"""A real server as a function: the values of a call's keys, and the call -> new values, reply.

Each value that was seen has a number. A call is executed on its own keys the first time that it
meets their values; the outcome is remembered. Epochs are kept apart from the lease that holds
them: scripts only compare them, and make new ones from the server's clock, so that their order is
all that matters.
"""

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self, cast

import hiredis

from verify.model_check.calls import KEYS, KINDS, TTL_MS, Call
from voicefleet.schemas.keys import GROUP

_pack = cast(Callable[[tuple[Any, ...]], bytes], hiredis.pack_command)

ABSENT = 0

SAME, RAISED, NEW, NONE = "same", "raised", "new", "none"
"""What a call did to the lease's epoch."""

LOWER, EQUAL, HIGHER = 1_000, 2_000, 3_000
"""Epochs as the server is given them: the lease's is ``EQUAL``."""
FIRST_REAL = 1_000_000_000_000

_RESTORE = """
for i, key in ipairs(KEYS) do
  redis.call('DEL', key)
  if ARGV[2 * i - 1] ~= '' then redis.call('RESTORE', key, ARGV[2 * i], ARGV[2 * i - 1]) end
end
if ARGV[2 * #KEYS + 1] ~= '' then redis.call('HSET', KEYS[1], 'epoch', ARGV[2 * #KEYS + 1]) end
return 1
"""

_LOOK = """
local found = {}
for i, key in ipairs(KEYS) do
  local kind, content, group, pending = redis.call('TYPE', key).ok, '', {}, {}
  if kind == 'hash' then content = redis.call('HGETALL', key)
  elseif kind == 'zset' then content = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  elseif kind == 'string' then content = redis.call('GET', key)
  elseif kind == 'stream' then
    content = redis.call('XRANGE', key, '-', '+')
    group = redis.call('XINFO', 'GROUPS', key)[1] or {}
    if #group > 0 then pending = redis.call('XPENDING', key, group[2], '-', '+', 1000) end
  end
  found[i] = {kind, redis.call('DUMP', key), redis.call('PTTL', key), content, group, pending}
end
return found
"""

VOLATILE = {b"t", b"worker", b"first_audio_ms", b"updated_ms"}
"""Fields of audio and session entries that differ from run to run: times, and the worker."""


class Value(NamedTuple):
    """What a key holds. ``content`` is compared, ``dump`` is restored."""

    kind: str
    content: tuple[Any, ...]
    expires: bool
    dump: bytes = b""
    raw: object = None


class Queue(NamedTuple):
    """The request stream: its entries, who has which of them, the last one delivered."""

    entries: tuple[str, ...]
    pending: tuple[tuple[str, str], ...]
    delivered: str

    def held_by(self, owner: str) -> tuple[str, ...]:
        """The pending entries in ``owner``'s name."""
        return tuple(entry for entry, holder in self.pending if holder == owner)

    @property
    def undelivered(self) -> tuple[str, ...]:
        """The entries that no worker has been given yet."""
        return tuple(e for e in self.entries if entry_order(e) > entry_order(self.delivered))


class Outcome(NamedTuple):
    """What a call did: its decoded reply, its keys' new values, its lease's epoch, the wake key."""

    reply: Any
    values: tuple[int, ...]
    epoch: str
    rung: bool


class RefusedError(Exception):
    """The server replied with an error, which none of our calls may cause."""


def entry_order(entry: str) -> tuple[int, int]:
    """An entry's id as numbers, which sort."""
    ms, seq = entry.split("-")
    return int(ms), int(seq)


class Server:
    """The scripts, on a server of their own.

    Args:
        port: The server's; its database is emptied.
        patches: Sources of scripts to run in place of ours, by name.
    """

    def __init__(self, port: int, patches: Mapping[str, str] | None = None) -> None:
        self._wire = _Wire(port)
        self._loaded: dict[str, str] = {}
        for name, kind in KINDS.items():
            source = (patches or {}).get(name, kind.script.source)
            self._loaded[name] = self._wire.ask("SCRIPT", "LOAD", source).decode()
        self._restore = self._wire.ask("SCRIPT", "LOAD", _RESTORE)
        self._look = self._wire.ask("SCRIPT", "LOAD", _LOOK)
        self.values: list[Value] = [Value("none", (), True)]
        self._numbers: dict[tuple[Any, ...], int] = {self.values[0][:3]: ABSENT}
        self._outcomes: dict[tuple[Any, ...], Outcome] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._wire.close()

    @property
    def executed(self) -> int:
        """How many calls were executed on the server."""
        return len(self._outcomes)

    def prepare(self, *commands: Sequence[Any]) -> None:
        """Run commands on an empty server; read a key with ``number`` afterwards."""
        self._wire.ask("FLUSHALL")
        for command in commands:
            self._wire.ask(*command)

    def number(self, key: str) -> int:
        """The number of the value that a key has on the server now."""
        return self._number(key, self._wire.ask("EVALSHA", self._look, 1, key)[0])

    def run(self, call: Call, values: tuple[int, ...], epoch: int) -> Outcome:
        """Run a call on keys that hold these values, and this epoch of their lease (0: none)."""
        order = 0
        if call.epoch:
            order = EQUAL if call.epoch == epoch else LOWER if call.epoch < epoch else HIGHER
        known = (call.kind, call.keys, call.args, call.ticket, values, order, epoch > 0)
        outcome = self._outcomes.get(known)
        if outcome is None:
            outcome = self._outcomes[known] = self._run(call, values, order, epoch > 0)
        return outcome

    def _run(self, call: Call, values: tuple[int, ...], order: int, has_epoch: bool) -> Outcome:
        before = [self.values[number] for number in values]
        payloads: list[Any] = []
        for value in before:
            payloads += [value.dump, TTL_MS if value.expires else 0]
        payloads.append(EQUAL if has_epoch else "")
        script = self._loaded.get(call.kind)
        command = call.command(order)
        if script:
            command = ("EVALSHA", script, len(call.keys), *call.keys, *command)
        _, reply, found = self._wire.batch(
            ("EVALSHA", self._restore, len(call.keys), *call.keys, *payloads),
            command,
            ("EVALSHA", self._look, len(call.keys), *call.keys),
        )
        if isinstance(reply, hiredis.ReplyError):
            raise RefusedError(f"{call}: {reply}")
        after = tuple(self._number(*item) for item in zip(call.keys, found, strict=True))
        rung = any(
            item[0] == b"string" and item[3] != value.raw
            for item, value in zip(found, before, strict=True)
        )
        return Outcome(call.decode(reply), after, _epoch(found[0]), rung)

    def _number(self, key: str, found: Sequence[Any]) -> int:
        kind, dump, ttl, content, group, pending = found
        kind = kind.decode()
        if kind == "none":
            return ABSENT
        value = Value(kind, _canonical(key, kind, content, group, pending), ttl >= 0)
        number = self._numbers.get(value[:3])
        if number is None:
            number = self._numbers[value[:3]] = len(self.values)
            self.values.append(value._replace(dump=dump, raw=content))
        return number


def _epoch(found: Sequence[Any]) -> str:
    if found[0] != b"hash":
        return NONE
    fields = dict(zip(found[3][::2], found[3][1::2], strict=True))
    epoch = int(fields.get(b"epoch", 0))
    if epoch == 0:
        return NONE
    if epoch == EQUAL:
        return SAME
    if epoch == EQUAL + 1:
        return RAISED
    assert epoch > FIRST_REAL, f"an epoch from nowhere: {epoch}"
    return NEW


def _canonical(
    key: str, kind: str, content: Any, group: Sequence[Any], pending: Sequence[Any]
) -> tuple[Any, ...]:
    if kind == "string":
        return ()
    if kind in ("zset", "list"):
        return tuple(part.decode() for part in content)
    if kind == "hash":
        fields = dict(zip(content[::2], content[1::2], strict=True))
        if key.startswith(KEYS.session("")[:-2]):
            fields = {name: value for name, value in fields.items() if name == b"state"}
        fields.pop(b"epoch", None)
        return tuple(sorted((name.decode(), value.decode()) for name, value in fields.items()))
    if group:
        named = dict(zip(group[::2], group[1::2], strict=True))
        assert named[b"name"] == GROUP.encode()
        return Queue(
            tuple(entry.decode() for entry, _ in content),
            tuple(sorted((entry.decode(), owner.decode()) for entry, owner, _, _ in pending)),
            named[b"last-delivered-id"].decode(),
        )
    return tuple((entry.decode(), _fields(flat)) for entry, flat in content)


def _fields(flat: Sequence[bytes]) -> tuple[tuple[str, str], ...]:
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return tuple((name.decode(), value.decode()) for name, value in pairs if name not in VOLATILE)


class _Wire:
    """A blocking connection."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader(notEnoughData=self)

    def ask(self, *command: Any) -> Any:
        (reply,) = self.batch(command)
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def batch(self, *commands: Sequence[Any]) -> list[Any]:
        self._socket.sendall(b"".join(_pack(tuple(command)) for command in commands))
        replies: list[Any] = []
        while len(replies) < len(commands):
            reply = self._reader.gets()
            if reply is self:
                data = self._socket.recv(1 << 16)
                if not data:
                    raise ConnectionError("the server is gone")
                self._reader.feed(data)
            else:
                replies.append(reply)
        return replies

    def close(self) -> None:
        self._socket.close()
