"""A worker that is asked to end does end, whatever its server does."""

import os
import signal
import sys
from collections.abc import AsyncGenerator

import anyio
import pytest
from redis.asyncio import from_url

from tests.harness.fleet import Orchestrator, WorkerProcess, worker_process
from tests.harness.key_leaks import KeyLeaks
from voicefleet.embedded_server import EmbeddedServer
from voicefleet.schemas.keys import Keys
from voicefleet.worker.drain import HURRY_S, LAST_RESORT_S, MARGIN_S, Drain

pytestmark = pytest.mark.anyio

TIMEOUT_S = 1.0
LONG = " ".join(["One two three four five six seven eight nine ten."] * 40)
SLACK_S = 5.0
"""For an interpreter that ends on a machine that has other work."""


@pytest.fixture
async def server() -> AsyncGenerator[EmbeddedServer]:
    """A server that a test may stop or kill."""
    async with EmbeddedServer.start() as server:
        yield server


async def take_away(server: EmbeddedServer, how: str) -> None:
    if how == "stalled":
        os.kill(server.pid, signal.SIGSTOP)
    else:
        await server.kill()


async def ends_well(worker: WorkerProcess, within_s: float) -> None:
    with anyio.fail_after(within_s + SLACK_S):
        assert await worker.exited() == 0


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "speaking"])
@pytest.mark.parametrize("how", ["stalled", "killed"])
async def test_without_its_server_within_its_limit(
    server: EmbeddedServer, how: str, busy: bool
) -> None:
    async with from_url(server.url) as redis:
        fleet = Orchestrator(redis, "tts")
        flag = f"worker.drain_timeout_s={TIMEOUT_S}"
        async with worker_process(fleet, server.url, "w1", flag, ready_s=60) as worker:
            if busy:
                await fleet.add("speaks", LONG)
                await fleet.add("waits", LONG)
                await fleet.add("waits", LONG)
                await fleet.hear("speaks", until=10)
            await take_away(server, how)
            worker.signal(signal.SIGTERM)
            await ends_well(worker, TIMEOUT_S + MARGIN_S)


@pytest.mark.parametrize("how", ["stalled", "killed", "healthy"])
async def test_at_once_when_it_is_asked_twice(server: EmbeddedServer, how: str) -> None:
    async with from_url(server.url) as redis:
        fleet = Orchestrator(redis, "tts")
        flag = "worker.drain_timeout_s=600"
        async with worker_process(fleet, server.url, "w1", flag, ready_s=60) as worker:
            await fleet.add("s", LONG)
            await fleet.hear("s", until=10)
            if how != "healthy":
                await take_away(server, how)
            worker.signal(signal.SIGTERM)
            await anyio.sleep(0.5)
            worker.signal(signal.SIGTERM)
            await ends_well(worker, HURRY_S + LAST_RESORT_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("how", ["stalled", "killed"])
async def test_at_once_when_it_never_reached_a_server(
    server: EmbeddedServer, how: str, number: signal.Signals
) -> None:
    await take_away(server, how)
    impatient = ("redis.timeout_s=0.2", "redis.connect_timeout_s=0.2")
    worker = WorkerProcess(server.url, "tts", "w1", *impatient, config="configs/tone.yaml")
    try:
        await worker.says("redis_away")
        worker.signal(number)
        await ends_well(worker, 0.0)
    finally:
        print(worker.end())


async def test_at_once_when_it_has_not_begun(server: EmbeddedServer, leaks: KeyLeaks) -> None:
    """It loads its model, and is in the fleet already: it leaves it."""
    prefix = leaks.prefix
    worker = WorkerProcess(
        server.url, prefix, "w1", "engine.tone.latency_ms=60000", config="configs/tone.yaml"
    )
    try:
        async with from_url(server.url) as redis:
            await Orchestrator(redis, prefix).worker_is("w1", "starting")
            worker.signal(signal.SIGTERM)
            await ends_well(worker, 0.0)
            assert not await redis.exists(Keys(prefix).worker("w1"))
            assert await redis.zcard(Keys(prefix).workers) == 0
    finally:
        print(worker.end())


HELD_UP = """
import time, anyio
from voicefleet.worker.drain import Drain, obeying_signals

async def main():
    with obeying_signals(Drain(600.0)):
        print("held up", flush=True)
        time.sleep(600)

anyio.run(main)
"""


async def test_at_once_though_its_event_loop_is_held_up() -> None:
    process = await anyio.open_process([sys.executable, "-c", HELD_UP])
    async with process:
        assert process.stdout is not None
        await process.stdout.receive()
        process.send_signal(signal.SIGTERM)
        await anyio.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(HURRY_S + LAST_RESORT_S + SLACK_S):
            assert await process.wait() == 0


async def test_a_limit_is_never_moved_away() -> None:
    drain = Drain(0.0)
    with drain.limit, anyio.fail_after(MARGIN_S + SLACK_S):
        drain.ask()
        first = drain.limit.deadline
        drain.ask()
        assert drain.hurried.is_set()
        second = drain.limit.deadline
        assert second < first
        drain.ask()
        assert drain.limit.deadline == second
        await anyio.sleep_forever()
    assert drain.limit.cancelled_caught
