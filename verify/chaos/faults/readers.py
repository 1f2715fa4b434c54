"""Readers that are slow, die, or start very late. The journal has what they read, too."""

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
from redis.exceptions import RedisError

from verify.chaos.fault_report import FaultReport
from verify.chaos.reading import Entry
from verify.chaos.recorder import heard
from verify.chaos.schedule import Injection
from verify.chaos.stream_id import Id
from verify.chaos.world import CannotInjectError, World

LATE_S: Final = 30.0
SLOW_ENTRIES: Final = 40
SLOW_GAP_S: Final = 0.5
DEAD: Final = 5
_PAGE: Final = 500
_BLOCK_MS: Final = 60_000


async def slow(world: World, injection: Injection) -> FaultReport:
    """Read a session one entry at a time, with long gaps."""
    session, turn = await _speaking(world, injection)

    async def read() -> None:
        last = f"{turn - 1}-99999999"
        for _ in range(SLOW_ENTRIES):
            last = await _read(world, session, last, "slow", count=1)
            await anyio.sleep(SLOW_GAP_S)

    world.background.start_soon(_patiently, read)
    await anyio.sleep(injection.seconds)
    return FaultReport(target=session)


async def dead(world: World, injection: Injection) -> FaultReport:
    """Block on XREAD and break the connection without closing it."""
    session, _ = await _speaking(world, injection)
    key = world.records.keys.audio(session)
    node = await world.servers.owner(key)
    for _ in range(DEAD):
        stream = await anyio.connect_tcp("127.0.0.1", node.port)
        parts = ("XREAD", "BLOCK", str(_BLOCK_MS), "STREAMS", key, "$")
        await stream.send(_resp(parts))
        await anyio.sleep(injection.seconds / DEAD)
        await anyio.aclose_forcefully(stream)
    return FaultReport(target=session)


async def late(world: World, injection: Injection) -> FaultReport:
    """Start reading at a turn long after it was spoken."""
    session, turn = await _speaking(world, injection)

    async def read() -> None:
        await anyio.sleep(LATE_S)
        last, read_to = "", f"{turn - 1}-99999999"
        while read_to != last and int(read_to.partition("-")[0]) <= turn:
            last, read_to = read_to, await _read(world, session, read_to, "late", count=_PAGE)

    world.background.start_soon(_patiently, read)
    await anyio.sleep(injection.seconds)
    return FaultReport(target=session)


async def _speaking(world: World, injection: Injection) -> tuple[str, int]:
    speaking = await world.records.speaking(world.sessions)
    if not speaking:
        raise CannotInjectError("nobody speaks")
    session = injection.random().choice(sorted(speaking))
    return session, int(speaking[session]["turn"])


async def _read(world: World, session: str, after: str, reader: str, *, count: int) -> str:
    """Read on from an id into the journal; returns the last id read."""
    key = world.records.keys.audio(session)
    node = await world.servers.owner(key)
    async with node.client() as client:
        # Bytes: a frame is no text.
        client.connection_pool.connection_kwargs["decode_responses"] = False
        reply: Any = await client.xrange(key, f"({after}", "+", count=count)
    at = time.monotonic()
    for raw, fields in reply:
        after = raw.decode()
        entry = Entry(Id.parse(after), fields)
        world.journal.write(heard(session, entry, at, reader))
    return after


async def _patiently(read: Callable[[], Awaitable[None]]) -> None:
    """Let a reader give up when the server is away: other checks cover that."""
    try:
        await read()
    except (RedisError, OSError, LookupError, ValueError):
        return


def _resp(parts: tuple[str, ...]) -> bytes:
    body = "".join(f"${len(part.encode())}\r\n{part}\r\n" for part in parts)
    return f"*{len(parts)}\r\n{body}".encode()
