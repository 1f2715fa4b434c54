"""Redis goes away, comes back, forgets: readers hear a pause at worst."""

from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import pytest
from redis.asyncio import Redis, from_url
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import RedisError

from tests.harness.fleet import HANG_S, Heard, Orchestrator, serving, worker_process
from tests.harness.key_leaks import KeyLeaks
from voicefleet.embedded_server import EmbeddedServer
from voicefleet.schemas.audio import End

pytestmark = pytest.mark.anyio

TEXT = (
    "One two three four five six seven. Eight nine ten eleven twelve. "
    "Thirteen fourteen fifteen sixteen. Seventeen eighteen nineteen twenty."
)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncGenerator[EmbeddedServer]:
    """A server of the test's own, that keeps its data."""
    config = ["appendonly yes", "appendfsync always"]
    async with EmbeddedServer.start(directory=tmp_path, config=config) as server:
        yield server


@pytest.fixture
async def fleet(server: EmbeddedServer, leaks: KeyLeaks) -> AsyncGenerator[Orchestrator]:
    leaks.watch(server.url)
    retry = Retry(ConstantBackoff(0.05), 200)
    async with from_url(server.url, retry=retry) as redis:
        yield Orchestrator(redis, leaks.prefix)


async def undisturbed(fleet: Orchestrator) -> Heard:
    await fleet.add("calm", TEXT, seed=11, lead_ms=0)
    return await fleet.hear("calm")


async def last_number(fleet: Orchestrator, session: str) -> int:
    newest = await fleet.redis.xrevrange(fleet.keys.audio(session), count=1)
    return int(newest[0][0].split(b"-")[1]) if newest else -1


async def test_a_restart_with_its_data_is_a_pause(
    fleet: Orchestrator, server: EmbeddedServer
) -> None:
    async with serving(server.url, fleet.keys.prefix):
        calm = await undisturbed(fleet)
        await fleet.add("s", TEXT, seed=11)
        await fleet.hear("s", until=60)
        await server.kill()
        await anyio.sleep(0.5)
        await server.restart()
        heard = await fleet.hear("s")
        assert heard.end.reason == "completed"
        assert heard.pcm == calm.pcm
        await fleet.add("after", "Go on.", lead_ms=0)
        assert (await fleet.hear("after")).end.reason == "completed"
        await fleet.settled()


async def test_every_connection_killed_is_hardly_a_pause(
    fleet: Orchestrator, server: EmbeddedServer
) -> None:
    async with serving(server.url, fleet.keys.prefix):
        calm = await undisturbed(fleet)
        await fleet.add("s", TEXT, seed=11)
        for until in (30, 60, 90, 120):
            await fleet.hear("s", until=until)
            for kind in ("normal", "pubsub"):
                await fleet.redis.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        heard = await fleet.hear("s")
        assert heard.pcm == calm.pcm
        await fleet.control("s", "stop")
        await fleet.add("s", TEXT)
        assert (await fleet.hear("s", 2)).end.reason == "stopped"
        await fleet.settled()


async def test_control_set_while_the_watch_is_down_is_obeyed(
    fleet: Orchestrator, server: EmbeddedServer
) -> None:
    async with serving(server.url, fleet.keys.prefix):
        await fleet.add("s", TEXT)
        await fleet.hear("s", until=20)
        pipe = fleet.redis.pipeline(transaction=True)
        pipe.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        pipe.set(fleet.keys.control("s"), "stop", ex=60)
        await pipe.execute()
        assert (await fleet.hear("s")).end.reason == "stopped"


async def test_forgotten_scripts_are_loaded_again(
    fleet: Orchestrator, server: EmbeddedServer
) -> None:
    async with serving(server.url, fleet.keys.prefix):
        calm = await undisturbed(fleet)
        await fleet.add("s", TEXT, seed=11)
        for until in (30, 60):
            await fleet.hear("s", until=until)
            await fleet.redis.script_flush()
        assert (await fleet.hear("s")).pcm == calm.pcm


@pytest.mark.parametrize("forgotten", [20, 90])
async def test_a_forgotten_tail_is_published_again(
    fleet: Orchestrator, server: EmbeddedServer, forgotten: int
) -> None:
    """What a failover to a lagging replica does: the newest entries are gone.

    A stream cannot be shortened at its end, so it is written anew without its tail. 90 frames are
    more than the resend window below: the turn is made again from there.
    """
    async with serving(server.url, fleet.keys.prefix, resend_window_s=1.0):
        calm = await undisturbed(fleet)
        await fleet.add("s", TEXT, seed=11)
        await fleet.hear("s", until=130)
        key = fleet.keys.audio("s")
        async with fleet.redis.pipeline(transaction=True) as pipe:
            while True:
                try:
                    await pipe.watch(key)
                    entries = await pipe.xrange(key)
                    pipe.multi()
                    pipe.delete(key)
                    for entry, fields in entries[:-forgotten]:
                        pipe.xadd(key, fields, id=entry)
                    await pipe.execute()
                    break
                except RedisError:
                    continue
        heard = await fleet.hear("s")
        assert heard.pcm == calm.pcm


async def test_a_server_that_forgot_everything_hears_the_turn_anew(
    fleet: Orchestrator, server: EmbeddedServer
) -> None:
    async with serving(server.url, fleet.keys.prefix):
        calm = await undisturbed(fleet)
        await fleet.add("s", TEXT, seed=11)
        await fleet.hear("s", until=100)
        await fleet.redis.flushall()
        heard = await fleet.hear("s")
        assert heard.end.reason == "completed"
        assert heard.pcm == calm.pcm
        await fleet.add("after", "Go on.", lead_ms=0)
        assert (await fleet.hear("after")).end.reason == "completed"


async def test_text_that_was_read_is_spoken_though_the_server_forgot_it(
    fleet: Orchestrator, server: EmbeddedServer
) -> None:
    """Half a sentence is read, and forgotten before its other half comes."""
    half = len(TEXT) - 30
    async with serving(server.url, fleet.keys.prefix):
        calm = await undisturbed(fleet)
        await fleet.add("s", request="r", stream=1, seed=11)
        await fleet.write("s", "r", text=TEXT[:half])
        await fleet.hear("s", until=60)
        await fleet.redis.flushall()
        await fleet.hear("s", until=80)
        await fleet.write("s", "r", text=TEXT[half:], end=1)
        heard = await fleet.hear("s")
        assert heard.end.reason == "completed"
        assert heard.pcm == calm.pcm


async def test_a_worker_starts_before_its_server(tmp_path: Path) -> None:
    async with EmbeddedServer.start(directory=tmp_path) as server:
        await server.kill()
        async with from_url(server.url, retry=Retry(ConstantBackoff(0.05), 200)) as redis:
            fleet = Orchestrator(redis, "tts")
            async with anyio.create_task_group() as tasks:

                async def late() -> None:
                    await anyio.sleep(0.5)
                    await server.restart()

                tasks.start_soon(late)
                async with worker_process(fleet, server.url, "w1"):
                    await fleet.add("s", "At last.", lead_ms=0)
                    assert (await fleet.hear("s")).end.reason == "completed"


async def test_a_password_that_is_refused_for_a_while_is_waited_out(tmp_path: Path) -> None:
    """A new primary whose users were not loaded, say: it ends no worker that was let in before."""
    async with (
        EmbeddedServer.start(directory=tmp_path, password="right") as server,
        from_url(server.url) as redis,
    ):
        fleet = Orchestrator(redis, "tts")
        async with serving(server.url, "tts"):
            calm = await undisturbed(fleet)
            await fleet.add("s", TEXT, seed=11)
            await fleet.hear("s", until=30)
            await redis.config_set("requirepass", "wrong")
            for kind in ("normal", "pubsub"):
                await redis.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            await anyio.sleep(1.0)
            await redis.config_set("requirepass", "right")
            assert (await fleet.hear("s")).pcm == calm.pcm
            await fleet.settled()


async def test_a_turn_outlives_a_paused_server(fleet: Orchestrator, server: EmbeddedServer) -> None:
    async with serving(server.url, fleet.keys.prefix):
        calm = await undisturbed(fleet)
        await fleet.add("s", TEXT, seed=11)
        await fleet.hear("s", until=60)
        await fleet.redis.client_pause(800, all=True)
        assert (await fleet.hear("s", timeout_s=HANG_S)).pcm == calm.pcm


@pytest.mark.parametrize("wish", ["pause", "stop"])
async def test_what_a_full_server_refused_is_not_sent_past_a_wish(
    fleet: Orchestrator, server: EmbeddedServer, wish: str
) -> None:
    async with serving(server.url, fleet.keys.prefix):
        calm = await undisturbed(fleet)
        await fleet.add("s", TEXT, seed=11)
        await fleet.hear("s", until=50)
        await fleet.redis.config_set("maxmemory", 1)
        await anyio.sleep(0.5)  # in which frames are due
        last = await last_number(fleet, "s")
        # A client's SET would be refused too; an operator's need not be.
        script = "#!lua flags=allow-oom\nreturn redis.call('SET', KEYS[1], ARGV[1], 'EX', 60)"
        await fleet.redis.eval(script, 1, fleet.keys.control("s"), wish)
        await anyio.sleep(0.3)
        await fleet.redis.config_set("maxmemory", 0)
        if wish == "stop":
            heard = await fleet.hear("s")
            assert (heard.end.reason, heard.end.frames) == ("stopped", last)
            assert (await fleet.state("s"))["frames"] == str(last)
            return
        await anyio.sleep(1.0)
        assert await last_number(fleet, "s") == last
        assert (await fleet.state("s"))["state"] == "paused"
        await fleet.control("s", "resume")
        assert (await fleet.hear("s")).pcm == calm.pcm


async def test_a_turn_that_nobody_can_end_holds_up_no_session(
    redis: Redis, redis_url: str, prefix: str
) -> None:
    fleet = Orchestrator(redis, prefix)
    async with serving(redis_url, prefix):
        await fleet.add("s", "First.", request="r1", lead_ms=0)
        await fleet.hear("s")
        # What a failover leaves that kept a dead worker's lease and frames, and lost the request.
        await redis.hset(
            fleet.keys.lease("s"),
            mapping={"active": 1, "turn": 2, "request": "r2", "entry": "1-1", "owner": "ghost"},
        )
        await redis.xadd(fleet.keys.audio("s"), {"event": "start", "request": "r2"}, id="2-0")
        await fleet.add("s", "Third.", request="r3", lead_ms=0)
        async for _, entry in fleet.entries("s", "2-0"):
            assert isinstance(entry, End)
            assert (entry.id.turn, entry.request, entry.reason) == (2, "r2", "failed")
            break
        third = await fleet.hear("s", 3)
        assert (third.end.request, third.end.reason) == ("r3", "completed")


async def test_an_expiring_session_is_kept_alive_while_it_is_paused(
    redis: Redis, redis_url: str, prefix: str
) -> None:
    fleet = Orchestrator(redis, prefix)
    async with serving(redis_url, prefix, audio_ttl_s=1.0):
        await fleet.add("s", "Wait for me. Then go on.", lead_ms=100)
        await fleet.hear("s", until=10)
        await fleet.control("s", "pause")
        await anyio.sleep(2.5)
        assert await fleet.redis.exists(fleet.keys.audio("s"))
        await fleet.control("s", "resume")
        assert (await fleet.hear("s")).end.reason == "completed"
        with anyio.fail_after(HANG_S):
            while await fleet.redis.exists(fleet.keys.audio("s"), fleet.keys.lease("s")):
                await anyio.sleep(0.1)
