"""The network between one worker and the server."""

import random

import anyio

from verify.chaos.done import Done
from verify.chaos.proxy import Weather
from verify.chaos.schedule import Injection
from verify.chaos.world import CannotInjectError, World


async def delay(world: World, injection: Injection) -> Done:
    """Everything takes longer, by varying times."""
    rng = injection.random()
    delay_s = rng.uniform(0.02, 0.15)
    return await _weather(world, injection, rng, Weather(delay_s=delay_s, jitter_s=delay_s / 2))


async def loss(world: World, injection: Injection) -> Done:
    """Some of what is sent has to be sent again."""
    rng = injection.random()
    return await _weather(world, injection, rng, Weather(loss=rng.uniform(0.03, 0.2)))


async def half_open(world: World, injection: Injection) -> Done:
    """Nothing gets through, nobody is told; then all of it at once, or a reset."""
    rng = injection.random()
    return await _weather(world, injection, rng, Weather("silent", forgotten=rng.random() < 0.5))


async def partition(world: World, injection: Injection) -> Done:
    """All connections are reset, new ones refused."""
    return await _weather(world, injection, injection.random(), Weather("down"))


async def _weather(
    world: World, injection: Injection, rng: random.Random, weather: Weather
) -> Done:
    if world.network is None:
        raise CannotInjectError("the workers have no proxies")
    (worker,) = await world.some_workers(rng, 1, world.network.names)
    await world.network.set(worker.name, weather)
    try:
        await anyio.sleep(injection.seconds)
    finally:
        with anyio.CancelScope(shield=True):
            await world.network.set(worker.name)
    return Done(target=worker.name, note=_words(weather))


def _words(weather: Weather) -> str:
    if weather.loss:
        return f"{100 * weather.loss:.0f}% lost"
    if weather.delay_s:
        return f"{1000 * weather.delay_s:.0f} ms"
    return "reset after" if weather.forgotten else ""
