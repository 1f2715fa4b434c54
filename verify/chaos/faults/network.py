"""The network between one worker and the server."""

import random

import anyio

from verify.chaos.fault_report import FaultReport
from verify.chaos.proxy import Conditions
from verify.chaos.schedule import Injection
from verify.chaos.world import CannotInjectError, World


async def delay(world: World, injection: Injection) -> FaultReport:
    """Each chunk is delayed, by varying times."""
    rng = injection.random()
    delay_s = rng.uniform(0.02, 0.15)
    return await _impose(world, injection, rng, Conditions(delay_s=delay_s, jitter_s=delay_s / 2))


async def loss(world: World, injection: Injection) -> FaultReport:
    """Some packets are lost and sent again."""
    rng = injection.random()
    return await _impose(world, injection, rng, Conditions(loss=rng.uniform(0.03, 0.2)))


async def half_open(world: World, injection: Injection) -> FaultReport:
    """Nothing gets through for a while; then everything at once, or a reset."""
    rng = injection.random()
    return await _impose(world, injection, rng, Conditions("silent", forgotten=rng.random() < 0.5))


async def partition(world: World, injection: Injection) -> FaultReport:
    """All connections are reset, new ones refused."""
    return await _impose(world, injection, injection.random(), Conditions("down"))


async def _impose(
    world: World, injection: Injection, rng: random.Random, conditions: Conditions
) -> FaultReport:
    if world.network is None:
        raise CannotInjectError("the workers have no proxies")
    (worker,) = await world.some_workers(rng, 1, world.network.names)
    await world.network.set(worker.name, conditions)
    try:
        await anyio.sleep(injection.seconds)
    finally:
        with anyio.CancelScope(shield=True):
            await world.network.set(worker.name)
    return FaultReport(target=worker.name, note=_words(conditions))


def _words(conditions: Conditions) -> str:
    if conditions.loss:
        return f"{100 * conditions.loss:.0f}% lost"
    if conditions.delay_s:
        return f"{1000 * conditions.delay_s:.0f} ms"
    return "reset after" if conditions.forgotten else ""
