"""Workers are killed, stopped, drained, or have a wrong clock."""

import signal
import time
from typing import Final

import anyio

from verify.chaos.fault_report import FaultReport
from verify.chaos.schedule import Injection
from verify.chaos.workers import Worker
from verify.chaos.world import CannotInjectError, World

HOUR_S: Final = 3600
_DRAINED_S: Final = 30.0


async def kill(world: World, injection: Injection) -> FaultReport:
    """SIGKILL."""
    return await _kill(world, injection, 1)


async def kill_two(world: World, injection: Injection) -> FaultReport:
    """SIGKILL for two at once."""
    return await _kill(world, injection, 2)


async def stop(world: World, injection: Injection) -> FaultReport:
    """SIGSTOP, and SIGCONT after other workers have taken its turns over."""
    (worker,) = await world.some_workers(injection.random(), 1)
    worker.signal(signal.SIGSTOP)
    try:
        await anyio.sleep(injection.seconds)
    finally:
        worker.signal(signal.SIGCONT)
    return FaultReport(target=worker.name)


async def drain(world: World, injection: Injection) -> FaultReport:
    """SIGTERM, until it has ended."""
    return await _drain(await world.some_workers(injection.random(), 1))


async def drain_all_but_one(world: World, injection: Injection) -> FaultReport:
    """SIGTERM for all workers but one of each configuration at once."""
    return await _drain(await world.some_workers(injection.random()))


async def clock_jump(world: World, injection: Injection) -> FaultReport:
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
    return FaultReport(target=worker.name, note=f"{ahead_s:+d} s")


async def _kill(world: World, injection: Injection, count: int) -> FaultReport:
    chosen = await world.some_workers(injection.random(), count)
    for worker in chosen:
        worker.signal(signal.SIGKILL)
    for worker in chosen:
        await worker.ended()
    return FaultReport(target=_names(chosen))


async def _drain(chosen: list[Worker]) -> FaultReport:
    began = time.monotonic()
    for worker in chosen:
        worker.signal(signal.SIGTERM)
    with anyio.fail_after(_DRAINED_S):
        async with anyio.create_task_group() as tasks:
            for worker in chosen:
                tasks.start_soon(worker.ended)
    return FaultReport(target=_names(chosen), note=f"took {time.monotonic() - began:.1f} s")


def _names(chosen: list[Worker]) -> str:
    return ",".join(sorted(worker.name for worker in chosen))
