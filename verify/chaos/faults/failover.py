"""A replica becomes primary, with or without the newest writes."""

import time

import anyio

from verify.chaos.fault_report import FaultReport
from verify.chaos.node import Node
from verify.chaos.schedule import Injection
from verify.chaos.servers import until
from verify.chaos.world import World

# A user that does not exist: the replica cannot log in, so a link that was cut stays cut.
_NOBODY = ("masteruser", "nobody", "masterauth", "nothing")
_DEFAULT = ("masteruser", "", "masterauth", "")


async def kill(world: World, injection: Injection) -> FaultReport:
    """Kill a primary. It restarts empty once its replica has become primary."""
    primary, replica = await _pair(world, injection)
    return await _die(world, primary, replica)


async def lost_tail(world: World, injection: Injection) -> FaultReport:
    """Cut the replica off for a while, then make it primary: it lacks the newest writes."""
    primary, replica = await _pair(world, injection)
    await replica.call("CONFIG", "SET", *_NOBODY)
    try:
        await primary.call("CLIENT", "KILL", "TYPE", "replica")
        await anyio.sleep(injection.seconds)
        if world.servers.topology == "sentinel" or injection.random().random() < 0.5:
            report = await _die(world, primary, replica)
        else:
            await world.servers.promote(replica, force=True)
            report = FaultReport(target=primary.address, until=time.monotonic(), note="takeover")
    finally:
        with anyio.CancelScope(shield=True):
            await replica.call("CONFIG", "SET", *_DEFAULT)
    return FaultReport(target=report.target, until=report.until, note=report.note, forgets="tail")


async def stop(world: World, injection: Injection) -> FaultReport:
    """Stop a primary (SIGSTOP) until a failover has replaced it, then let it continue."""
    primary, replica = await _pair(world, injection)
    primary.stall()
    try:
        await anyio.sleep(injection.seconds)
        await until(lambda: _leads(world, replica), "the failover")
    finally:
        primary.go_on()
    # For a while there are two primaries: the old one loses what it accepts once it follows.
    await until(lambda: _follows(primary), "the old primary to follow")
    return FaultReport(target=primary.address, forgets="tail")


async def manual(world: World, injection: Injection) -> FaultReport:
    """A failover that an operator starts."""
    primary, replica = await _pair(world, injection)
    await world.servers.promote(replica, force=False)
    # In a Cluster the primary waits until its replica has everything; Sentinel does not wait.
    lossy = world.servers.topology == "sentinel"
    return FaultReport(
        target=primary.address, forgets="tail" if lossy else "nothing", until=time.monotonic()
    )


async def _die(world: World, primary: Node, replica: Node) -> FaultReport:
    await primary.server.kill()
    try:
        await until(lambda: _leads(world, replica), "the failover")
        led = time.monotonic()
    finally:
        with anyio.CancelScope(shield=True):
            await world.servers.rejoin(primary, replica)
    return FaultReport(target=primary.address, forgets="tail", until=led)


async def _pair(world: World, injection: Injection) -> tuple[Node, Node]:
    primary = injection.random().choice(await world.servers.primaries())
    return primary, await world.servers.replica_of(primary)


async def _follows(node: Node) -> bool:
    role, *_ = await node.call("ROLE")
    return role in (b"slave", "slave")


async def _leads(world: World, replica: Node) -> bool:
    return replica in await world.servers.primaries()
