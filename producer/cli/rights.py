"""What the doctor finds about a user's rights: do they suffice for what the user is meant for?"""

import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from producer.cli.finding import Finding, Findings
from producer.client import VoiceFleet
from producer.errors import ServerRefused, VoiceFleetError, translated
from schemas import Keys
from wire.link import Argument, Link, ReplyError

_CONTAINERS: Final = ("CLIENT", "SCRIPT", "XGROUP", "XINFO")


class _Role(msgspec.Struct, frozen=True):
    """One of the parts a user may have, and what it takes. The first command tells who has it.

    The commands are the real ones, on keys of their own that are missing or gone afterwards.
    """

    name: str
    commands: tuple[tuple[Argument, ...], ...]


def _roles(keys: Keys) -> tuple[_Role, ...]:
    name = f"doctor-{uuid.uuid4().hex}"
    control, audio, record = keys.control(name), keys.audio(name), keys.session(name)
    queue, lease, spoken = keys.requests(name), keys.lease(name), keys.spoken(name)
    text, worker, model = keys.text(name, name), keys.worker(name), keys.model(name)
    reading: tuple[tuple[Argument, ...], ...] = (
        ("XREAD", "COUNT", 1, "STREAMS", audio, "0"),
        ("XRANGE", audio, "-", "+", "COUNT", 1),
        ("XREVRANGE", audio, "+", "-", "COUNT", 1),
        ("HGETALL", record),
        ("HGETALL", worker),
        ("HGETALL", model),
        ("EXISTS", model),
        ("ZRANGE", keys.workers, 0, 0),
        ("XLEN", queue),
        ("XLEN", keys.dead),
        ("TIME",),
    )
    speaking: tuple[tuple[Argument, ...], ...] = (
        ("XADD", queue, "NOMKSTREAM", "*", "doctor", "1"),
        ("XADD", text, "NOMKSTREAM", "*", "doctor", "1"),
        ("EXPIRE", text, 5),
        ("XRANGE", text, "-", "+", "COUNT", 1),
        ("SET", control, "resume", "EX", 5),
        ("GET", control),
        ("EXPIRE", control, 5),
        ("DEL", control),
        *reading,
    )
    working: tuple[tuple[Argument, ...], ...] = (
        ("HSET", lease, "doctor", "1"),
        ("PEXPIRE", lease, 5000),
        ("HGETALL", lease),
        ("HMGET", lease, "doctor"),
        ("HINCRBY", lease, "doctor", 1),
        ("HKEYS", lease),
        ("HDEL", lease, "doctor"),
        ("DEL", lease),
        ("ZADD", spoken, 1, "doctor"),
        ("PEXPIRE", spoken, 5000),
        ("ZSCORE", spoken, "doctor"),
        ("ZREMRANGEBYRANK", spoken, 0, -1),
        ("DEL", spoken),
        ("HSET", record, "state", "idle"),
        ("PEXPIRE", record, 5000),
        ("DEL", record),
        ("XADD", audio, "NOMKSTREAM", "1-0", "doctor", "1"),
        ("XTRIM", audio, "MAXLEN", 10),
        ("PEXPIRE", audio, 5000),
        ("XRANGE", text, "-", "+", "COUNT", 1),
        ("GET", control),
        # A queue that is not there: each of these is answered NOGROUP, or with nothing.
        ("XGROUP", "CREATE", queue, "workers", "0"),
        ("XREADGROUP", "GROUP", "workers", "doctor", "COUNT", 1, "STREAMS", queue, ">"),
        ("XPENDING", queue, "workers", "-", "+", 1),
        ("XCLAIM", queue, "workers", "doctor", 1, "1-0", "JUSTID"),
        ("XINFO", "CONSUMERS", queue, "workers"),
        ("XACK", queue, "workers", "1-0"),
        ("XDEL", queue, "1-0"),
        ("XGROUP", "DELCONSUMER", queue, "workers", "doctor"),
        ("ZREM", keys.workers, name),
        ("XADD", keys.dead, "NOMKSTREAM", "0-0", "doctor", "1"),
        ("EXISTS", worker),
        ("TYPE", model),
        ("EVAL", "return redis.call('HKEYS', KEYS[1])", 1, lease),
        ("SCRIPT", "LOAD", "return 1"),
        ("CLIENT", "ID"),
        ("CLIENT", "UNBLOCK", 0),
        ("TIME",),
    )
    return (_Role("clients", speaking), _Role("workers", working), _Role("observers", reading))


async def rights(fleet: VoiceFleet) -> Findings:
    """Whether this user may do all that clients do, that workers do, or that reading takes.

    A user that may add requests is meant for clients, one that may write leases for workers; one
    user may be both. One that may do neither is an observer.
    """
    clients, workers, observers = _roles(fleet.keys)
    async with _links(fleet) as link_to:

        async def refused_of(role: _Role) -> dict[str, None]:
            refused: dict[str, None] = {}
            for command in role.commands:
                if await is_refused(await link_to(_key_of(command, fleet.keys)), command):
                    refused[_full_name(command)] = None
            return refused

        async def is_meant_for(role: _Role) -> bool:
            first = role.commands[0]
            return not await is_refused(await link_to(_key_of(first, fleet.keys)), first)

        parts = [role for role in (clients, workers) if await is_meant_for(role)] or [observers]
        refused = {name: None for role in parts for name in await refused_of(role)}
    user = await _user(fleet)
    if refused:
        grants = " ".join(f"+{name.lower().replace(' ', '|')}" for name in refused)
        advice = f"ACL SETUSER {user} ~{fleet.keys.prefix}:* {grants}"
        yield Finding("fail", f"user {user} may not: {', '.join(refused)}", advice)
    else:
        names = " and ".join(role.name for role in parts)
        yield Finding("ok", f"user {user} may do all that {names} do")
    if clients in parts:
        try:
            await fleet.server.call("CLIENT UNBLOCK", 0)
        except ServerRefused:
            found = "CLIENT UNBLOCK is refused: the client makes a connection for each new session"
            yield Finding("warn", found, f"ACL SETUSER {user} +client|unblock")


@asynccontextmanager
async def _links(fleet: VoiceFleet) -> AsyncGenerator[Callable[[str], Awaitable[Link]]]:
    """Raw connections to the servers that own keys: redis-py would read odd replies for us."""
    topology = fleet.server.topology
    links: dict[tuple[str, int], Link] = {}

    async def link_to(key: str) -> Link:
        owner = topology.owner(key)
        if owner not in links:
            links[owner] = await topology.open_link(owner)
        return links[owner]

    with translated(fleet.server.endpoint):
        try:
            yield link_to
        finally:
            for link in links.values():
                link.close()


async def is_refused(link: Link, command: tuple[Argument, ...]) -> bool:
    """Whether the user has no right to a command; any other error is none of rights."""
    (reply,) = await link.batch([command])
    return isinstance(reply, ReplyError) and str(reply).startswith("NOPERM")


def _key_of(command: tuple[Argument, ...], keys: Keys) -> str:
    """The key that says which server of a Cluster has to be asked."""
    return next((str(p) for p in command if str(p).startswith(f"{keys.prefix}:")), keys.workers)


def _full_name(command: tuple[Argument, ...]) -> str:
    parts = command[:2] if command[0] in _CONTAINERS else command[:1]
    return " ".join(str(part) for part in parts)


async def _user(fleet: VoiceFleet) -> str:
    try:
        name: bytes = await fleet.server.call("ACL WHOAMI")
    except VoiceFleetError:
        return fleet.server.endpoint.username or "default"
    return name.decode()
