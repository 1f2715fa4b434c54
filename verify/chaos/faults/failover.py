"""A replica takes its primary's place, with or without the newest writes."""

import time

import anyio

from verify.chaos.done import Done
from verify.chaos.node import Node
from verify.chaos.schedule import Injection
from verify.chaos.servers import until
from verify.chaos.world import World

# A user that does not exist: the replica cannot log in, so a link that was cut stays cut.
_NOBODY = ("masteruser", "nobody", "masterauth", "nothing")
_DEFAULT = ("masteruser", "", "masterauth", "")


async def kill(world: World, injection: Injection) -> Done:
    """SIGKILL for a primary. It comes back, empty, once its replica leads."""
    primary, replica = await _pair(world, injection)
    return await _die(world, primary, replica)


async def lost_tail(world: World, injection: Injection) -> Done:
    """The replica is cut off for a while, and then it is all that is left."""
    primary, replica = await _pair(world, injection)
    await replica.call("CONFIG", "SET", *_NOBODY)
    try:
        await primary.call("CLIENT", "KILL", "TYPE", "replica")
        await anyio.sleep(injection.seconds)
        if world.servers.topology == "sentinel" or injection.random().random() < 0.5:
            done = await _die(world, primary, replica)
        else:
            await world.servers.promote(replica, force=True)
            done = Done(target=primary.address, until=time.monotonic(), note="takeover")
    finally:
        with anyio.CancelScope(shield=True):
            await replica.call("CONFIG", "SET", *_DEFAULT)
    return Done(target=done.target, until=done.until, note=done.note, forgets="tail")


async def stop(world: World, injection: Injection) -> Done:
    """SIGSTOP for a primary, for longer than its neighbours wait; then it goes on."""
    primary, replica = await _pair(world, injection)
    primary.stall()
    try:
        await anyio.sleep(injection.seconds)
        await until(lambda: _leads(world, replica), "the failover")
    finally:
        primary.go_on()
    # For a while there are two: what the old one takes in it forgets when it is told.
    await until(lambda: _follows(primary), "the old primary to follow")
    return Done(target=primary.address, forgets="tail")


async def manual(world: World, injection: Injection) -> Done:
    """The failover that an operator asks for."""
    primary, replica = await _pair(world, injection)
    await world.servers.promote(replica, force=False)
    # In a Cluster the primary waits until its replica has everything; Sentinel does not wait.
    lossy = world.servers.topology == "sentinel"
    return Done(
        target=primary.address, forgets="tail" if lossy else "nothing", until=time.monotonic()
    )


async def _die(world: World, primary: Node, replica: Node) -> Done:
    await primary.server.kill()
    try:
        await until(lambda: _leads(world, replica), "the failover")
        led = time.monotonic()
    finally:
        with anyio.CancelScope(shield=True):
            await world.servers.rejoin(primary, replica)
    return Done(target=primary.address, forgets="tail", until=led)


async def _pair(world: World, injection: Injection) -> tuple[Node, Node]:
    primary = injection.random().choice(await world.servers.primaries())
    return primary, await world.servers.replica_of(primary)


async def _follows(node: Node) -> bool:
    role, *_ = await node.call("ROLE")
    return role in (b"slave", "slave")


async def _leads(world: World, replica: Node) -> bool:
    return replica in await world.servers.primaries()
