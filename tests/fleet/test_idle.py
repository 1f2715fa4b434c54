"""What an idle worker asks of the server, and for how long a dead one is listed."""

import signal
from collections.abc import AsyncGenerator

import anyio
import pytest
from redis.asyncio import Redis, from_url

from tests.harness.fleet import HANG_S, Orchestrator, serving, worker_process
from voicefleet.embedded_server import EmbeddedServer

pytestmark = pytest.mark.anyio

WATCHED_S = 8.0
MOST_PER_S = 12
"""Those inside of scripts count. It was 31."""


@pytest.fixture
async def server() -> AsyncGenerator[EmbeddedServer]:
    """A server that nobody else uses."""
    async with EmbeddedServer.start() as server:
        yield server


async def commands(redis: Redis) -> int:
    return int((await redis.info("stats"))["total_commands_processed"])


async def test_an_idle_worker_says_little_and_stays_in_the_fleet(server: EmbeddedServer) -> None:
    async with from_url(server.url) as redis, serving(server.url, "tts"):
        fleet = Orchestrator(redis, "tts")
        await anyio.sleep(1.0)
        before = await commands(redis)
        for _ in range(int(WATCHED_S)):
            await anyio.sleep(1.0)
            assert (await fleet.worker("w1"))["state"] == "ready"
            assert await fleet.redis.exists(fleet.keys.model(fleet.model))
        mine = 4 * WATCHED_S
        assert await commands(redis) - before < mine + MOST_PER_S * WATCHED_S


async def test_a_dead_worker_is_listed_no_longer_than_it_can_be_given_work(
    server: EmbeddedServer,
) -> None:
    async with from_url(server.url) as redis, serving(server.url, "tts"):
        fleet = Orchestrator(redis, "tts")
        async with worker_process(fleet, server.url, "w2", ready_s=60) as worker:
            worker.signal(signal.SIGKILL)
            await worker.exited()
        workers = fleet.keys.workers
        beat_ms = await fleet.redis.zscore(workers, "w2")
        with anyio.fail_after(HANG_S):
            while await fleet.redis.zscore(workers, "w2") is not None:
                await anyio.sleep(0.05)
        seconds, micros = await fleet.redis.time()
        listed_s = seconds + micros / 1e6 - beat_ms / 1000
        assert 6.0 < listed_s < 12.0
        assert not await fleet.worker("w2")
        assert await fleet.redis.zscore(workers, "w1") is not None
