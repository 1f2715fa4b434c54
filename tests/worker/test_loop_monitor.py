"""Whether a process knows that it stood still."""

import time

import anyio
import anyio.lowlevel
import pytest

from voicefleet.worker.loop_monitor import LoopMonitor

pytestmark = pytest.mark.anyio

SILENCE_S = 0.6


async def test_a_blocked_loop_is_noticed_by_whoever_asks_first() -> None:
    monitor = LoopMonitor(SILENCE_S)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(monitor.run)
        await anyio.lowlevel.checkpoint()
        before = time.monotonic()
        time.sleep(SILENCE_S)  # noqa: ASYNC251  that is what is tested
        assert monitor.stood_still_since(before)
        await anyio.lowlevel.checkpoint()
        assert monitor.stood_still_since(before), "it is not forgotten"
        assert not monitor.stood_still_since(time.monotonic())
        tasks.cancel_scope.cancel()


async def test_a_loop_that_runs_is_not_blamed_though_nobody_asks() -> None:
    monitor = LoopMonitor(SILENCE_S * 5)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(monitor.run)
        before = time.monotonic()
        await anyio.sleep(SILENCE_S)
        assert not monitor.stood_still_since(before)
        tasks.cancel_scope.cancel()
