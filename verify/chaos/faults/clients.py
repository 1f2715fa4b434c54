"""Faults between clients and a healthy server: killed connections, slow replies, floods."""

import time
from typing import Final

import anyio
from redis.exceptions import RedisError

from verify.chaos.fault_report import FaultReport
from verify.chaos.node import ADMIN, Node
from verify.chaos.schedule import Injection
from verify.chaos.world import CannotInjectError, World

FLOODED: Final = 4
_BATCH: Final = 100
_GARBAGE: Final = "chaos:garbage"

# Only while the client lets its turn speak: the flood must not undo what the client has set.
_FLOOD: Final = """
local wish = redis.call('GET', KEYS[1])
if wish and wish ~= 'resume' and wish ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], 'resume', 'EX', 60)
redis.call('SET', KEYS[1], ARGV[1], 'EX', 60)
redis.call('SET', KEYS[1], 'RESUME', 'EX', 60)
redis.call('SET', KEYS[1], 'resume', 'EX', 60)
return 4
"""


async def kill(world: World, injection: Injection) -> FaultReport:
    """Cut connections, a random half at a time, again and again."""
    rng = injection.random()
    nodes = await world.servers.primaries()
    killed, began = 0, time.monotonic()
    while True:
        for node in nodes:
            async with node.client() as client:
                for one in await client.client_list():
                    ours = one["name"] == ADMIN or "S" in one["flags"] or "M" in one["flags"]
                    if not ours and rng.random() < 0.5:
                        killed += await client.client_kill_filter(_id=one["id"])
        if time.monotonic() - began > injection.seconds:
            return FaultReport(note=f"{killed} connections")
        await anyio.sleep(rng.uniform(0.1, 0.8))


async def pause(world: World, injection: Injection) -> FaultReport:
    """``CLIENT PAUSE ALL`` on every primary."""
    nodes = await world.servers.primaries()
    for node in nodes:
        await node.call("CLIENT", "PAUSE", int(1000 * injection.seconds), "ALL")
    await anyio.sleep(injection.seconds)
    return FaultReport(target=_addresses(nodes))


async def flood_control(world: World, injection: Injection) -> FaultReport:
    """Set control keys of living sessions thousands of times a second, to no effect."""
    rng = injection.random()
    speaking = sorted(await world.records.speaking(world.sessions))
    if not speaking:
        raise CannotInjectError("nobody speaks")
    chosen = rng.sample(speaking, min(FLOODED, len(speaking)))
    counts: list[int] = []

    async def flood(session: str) -> None:
        key = world.records.keys.control(session)
        async with (await world.servers.owner(key)).client() as client:
            ends = time.monotonic() + injection.seconds
            while time.monotonic() < ends:
                pipe = client.pipeline(transaction=False)
                for index in range(_BATCH):
                    pipe.eval(_FLOOD, 1, key, f"{_GARBAGE}{index}")
                counts.append(sum(await pipe.execute()))
                await anyio.sleep(0.1)

    async with anyio.create_task_group() as tasks:
        for session in chosen:
            tasks.start_soon(flood, session)
    return FaultReport(target=",".join(chosen), note=f"{sum(counts)} values")


async def script_flush(world: World, injection: Injection) -> FaultReport:
    """``SCRIPT FLUSH`` on every primary."""
    nodes = await world.servers.primaries()
    for node in nodes:
        await node.call("SCRIPT", "FLUSH")
    return FaultReport(target=_addresses(nodes))


async def slow_server(world: World, injection: Injection) -> FaultReport:
    """``DEBUG SLEEP``: a primary does nothing at all for a while."""
    node = await _a_primary(world, injection)
    try:
        await node.call("DEBUG", "SLEEP", str(injection.seconds), timeout_s=30)
    except (RedisError, OSError) as error:
        return FaultReport(target=node.address, note=type(error).__name__)
    return FaultReport(target=node.address)


async def server_full(world: World, injection: Injection) -> FaultReport:
    """A primary has no memory to spare: it refuses every write that could need some."""
    node = await _a_primary(world, injection)
    used = int((await node.info("memory"))["used_memory"])
    await node.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
    await node.call("CONFIG", "SET", "maxmemory", max(1, used // 2))
    try:
        await anyio.sleep(injection.seconds)
    finally:
        with anyio.CancelScope(shield=True):
            await node.call("CONFIG", "SET", "maxmemory", 0)
    return FaultReport(target=node.address)


async def _a_primary(world: World, injection: Injection) -> Node:
    return injection.random().choice(await world.servers.primaries())


def _addresses(nodes: list[Node]) -> str:
    return ",".join(node.address for node in nodes)
