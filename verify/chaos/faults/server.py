"""A single server crashes, loses its data, or has a full disk."""

import anyio

from verify.chaos.fault_report import FaultReport
from verify.chaos.schedule import Injection
from verify.chaos.standalone import NoDiskError, Standalone
from verify.chaos.world import CannotInjectError, World


async def kill(world: World, injection: Injection) -> FaultReport:
    """SIGKILL, and a restart with the data."""
    servers = _standalone(world)
    await servers.node.server.kill()
    await anyio.sleep(injection.seconds)
    await servers.node.server.restart()
    return FaultReport(forgets="tail" if servers.forgets_when_killed else "nothing")


async def empty(world: World, injection: Injection) -> FaultReport:
    """SIGKILL, and a restart without the data."""
    servers = _standalone(world)
    await servers.node.server.kill()
    servers.wipe()
    await anyio.sleep(injection.seconds)
    await servers.node.server.restart()
    return FaultReport(forgets="all")


async def flushall(world: World, injection: Injection) -> FaultReport:
    """``FLUSHALL``."""
    await _standalone(world).node.call("FLUSHALL")
    return FaultReport(forgets="all")


async def disk_full(world: World, injection: Injection) -> FaultReport:
    """Nothing more can be written to the append-only file."""
    servers = _standalone(world)
    if servers.disk is None:
        raise CannotInjectError("the server has no disk of its own: that takes root")
    try:
        try:
            servers.disk.fill()
        except NoDiskError as error:
            raise CannotInjectError(str(error)) from None
        await anyio.sleep(injection.seconds)
        facts = await servers.node.info("persistence")
    finally:
        servers.disk.empty()
    return FaultReport(note=f"append-only file: {facts['aof_last_write_status']}")


def _standalone(world: World) -> Standalone:
    if not isinstance(world.servers, Standalone):
        raise CannotInjectError("needs the standalone topology")
    return world.servers
