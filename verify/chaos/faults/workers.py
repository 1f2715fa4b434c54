"""Workers die, stall, are told to leave, and live in a wrong time."""

import signal
import time
from typing import Final

import anyio

from verify.chaos.done import Done
from verify.chaos.schedule import Injection
from verify.chaos.workers import Worker
from verify.chaos.world import CannotInjectError, World

HOUR_S: Final = 3600
_DRAINED_S: Final = 30.0


async def kill(world: World, injection: Injection) -> Done:
    """SIGKILL."""
    return await _kill(world, injection, 1)


async def kill_two(world: World, injection: Injection) -> Done:
    """SIGKILL for two at once."""
    return await _kill(world, injection, 2)


async def stop(world: World, injection: Injection) -> Done:
    """SIGSTOP, and SIGCONT when others have long gone on with its turns."""
    (worker,) = await world.some_workers(injection.random(), 1)
    worker.signal(signal.SIGSTOP)
    try:
        await anyio.sleep(injection.seconds)
    finally:
        worker.signal(signal.SIGCONT)
    return Done(target=worker.name)


async def drain(world: World, injection: Injection) -> Done:
    """SIGTERM, until it has ended."""
    return await _drain(await world.some_workers(injection.random(), 1))


async def drain_all_but_one(world: World, injection: Injection) -> Done:
    """SIGTERM for all but one of each kind at once."""
    return await _drain(await world.some_workers(injection.random()))


async def clock_jump(world: World, injection: Injection) -> Done:
    """The wall clock goes an hour forward or back, and returns."""
    rng = injection.random()
    (worker,) = await world.some_workers(rng, 1)
    if worker.clock is None:
        raise CannotInjectError("libfaketime is not installed")
    ahead_s = rng.choice((-HOUR_S, HOUR_S))
    worker.clock.jump(ahead_s)
    try:
        await anyio.sleep(injection.seconds)
    finally:
        worker.clock.jump(0)
    return Done(target=worker.name, note=f"{ahead_s:+d} s")


async def _kill(world: World, injection: Injection, count: int) -> Done:
    chosen = await world.some_workers(injection.random(), count)
    for worker in chosen:
        worker.signal(signal.SIGKILL)
    for worker in chosen:
        await worker.ended()
    return Done(target=_names(chosen))


async def _drain(chosen: list[Worker]) -> Done:
    began = time.monotonic()
    for worker in chosen:
        worker.signal(signal.SIGTERM)
    with anyio.fail_after(_DRAINED_S):
        async with anyio.create_task_group() as tasks:
            for worker in chosen:
                tasks.start_soon(worker.ended)
    return Done(target=_names(chosen), note=f"took {time.monotonic() - began:.1f} s")


def _names(chosen: list[Worker]) -> str:
    return ",".join(sorted(worker.name for worker in chosen))
