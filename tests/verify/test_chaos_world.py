"""The parts of a chaos run: schedule, saboteur, supervisor, servers."""

import os
import signal
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import numpy as np
import pytest
from redis.asyncio import from_url
from redis.exceptions import RedisError

from tests.harness.fleet import HANG_S, ROOT, Orchestrator
from verify.chaos import kinds, sabotage, servers, topologies
from verify.chaos.clock import library
from verify.chaos.cluster import Cluster
from verify.chaos.faults import failover, resharding
from verify.chaos.injector import INJECTS
from verify.chaos.records import Records
from verify.chaos.sabotage import SaboteurEngine
from verify.chaos.schedule import RECOVERY_S, Injection, Schedule, UnknownKindError
from verify.chaos.standalone import Standalone
from verify.chaos.workers import Workers, WorkerSpec
from voicefleet.embedded_server import EmbeddedServer
from voicefleet.schemas.keys import Keys
from voicefleet.worker.engines.protocol import EngineError, Samples, Segment, TurnSpec
from voicefleet.worker.engines.tone.engine import RATE, ToneEngine
from voicefleet.worker.engines.tone.family import ToneConfig
from voicefleet.worker.voicepacks import voicepack

pytestmark = pytest.mark.anyio


class TestSchedule:
    def test_the_seed_is_all_it_hangs_on(self) -> None:
        first = Schedule.make(7, "cluster", 300)
        assert first == Schedule.make(7, "cluster", 300)
        assert first != Schedule.make(8, "cluster", 300)

    @pytest.mark.parametrize("topology", kinds.ALL)
    def test_every_kind_comes_about_equally_often_one_at_a_time(
        self, topology: kinds.Topology
    ) -> None:
        schedule = Schedule.make(3, topology, 3000)
        counts = Counter(one.kind for one in schedule.injections)
        assert set(counts) == {kind.name for kind in kinds.of(topology)}
        assert max(counts.values()) - min(counts.values()) <= 1
        for one, following in zip(schedule.injections, schedule.injections[1:], strict=False):
            assert following.at_s >= one.at_s + one.seconds + RECOVERY_S - 0.02
        last = schedule.injections[-1]
        assert last.at_s + last.seconds <= 3000

    def test_kinds_can_be_named(self) -> None:
        schedule = Schedule.make(1, "standalone", 100, ["worker_kill", "flushall"])
        assert {one.kind for one in schedule.injections} == {"worker_kill", "flushall"}
        with pytest.raises(UnknownKindError, match=r"slot_migration.*worker_kill"):
            Schedule.make(1, "standalone", 100, ["slot_migration"])

    def test_every_kind_has_its_function(self) -> None:
        assert {kind.name for kind in kinds.KINDS} == set(INJECTS)


@pytest.fixture
def packs(tmp_path: Path) -> Path:
    """A folder with the voicepacks of the tone and of the saboteur."""
    sabotage.write_voicepacks(tmp_path / "voicepacks", ROOT / "voicepacks")
    return tmp_path / "voicepacks"


class TestSaboteur:
    TEXT = "One two three four five six seven eight nine ten."

    @pytest.fixture
    async def engine(self, packs: Path) -> SaboteurEngine:
        engine = SaboteurEngine(voicepack.read(packs / "saboteur/test"), ToneConfig())
        await engine.load()
        return engine

    async def speak(self, engine: Any, text: str, seed: int = 1) -> Samples:
        async def segments() -> AsyncIterator[Segment]:
            yield Segment(0, text, 0, len(text))

        spec = TurnSpec(voice="tone-a", seed=seed)
        made = [chunk.samples async for chunk in engine.speak(spec, segments())]
        return np.concatenate(made)

    async def test_it_speaks_as_the_tone_does(self, engine: SaboteurEngine, packs: Path) -> None:
        tone = ToneEngine(voicepack.read(packs / "tone/test"), ToneConfig())
        await tone.load()
        assert np.array_equal(
            await self.speak(engine, self.TEXT), await self.speak(tone, self.TEXT)
        )

    async def test_it_stumbles_and_gorges_each_time(self, engine: SaboteurEngine) -> None:
        for _ in range(2):
            with pytest.raises(EngineError, match="stumbled"):
                await self.speak(engine, f"Stumble, {self.TEXT}")
            with pytest.raises(MemoryError):
                await self.speak(engine, f"Gorge {self.TEXT}")

    async def test_it_falters_once_for_a_seed(self, engine: SaboteurEngine, packs: Path) -> None:
        text = f"Falter {self.TEXT}"
        for seed in (1, 2):
            with pytest.raises(EngineError, match="faltered"):
                await self.speak(engine, text, seed)
        tone = ToneEngine(voicepack.read(packs / "tone/test"), ToneConfig())
        await tone.load()
        assert np.array_equal(await self.speak(engine, text), await self.speak(tone, text))

    async def test_it_hangs_once_after_ten_frames(self, engine: SaboteurEngine) -> None:
        text, made = f"Hang {self.TEXT}", 0

        async def segments() -> AsyncIterator[Segment]:
            yield Segment(0, text, 0, len(text))

        with anyio.move_on_after(0.5) as waited:
            async for chunk in engine.speak(TurnSpec(voice="tone-a", seed=1), segments()):
                made += len(chunk.samples)
        assert waited.cancelled_caught
        assert made == RATE // 5
        assert len(await self.speak(engine, text)) > RATE


@asynccontextmanager
async def fleet_of(
    count: int, url: str, directory: Path, packs: Path, *, fake_clocks: bool = False
) -> AsyncGenerator[tuple[Workers, Orchestrator]]:
    """Supervised workers on a server of their own, all ready."""
    settings = (
        f"worker.models=tone-test,{sabotage.MODEL}",
        f"model_manager.voicepacks_dir={packs}",
        f"model_manager.preload_model_ids={sabotage.MODEL}",
        "worker.drain_timeout_s=1",
    )
    specs = [
        WorkerSpec(name=f"w{n}", url=url, config=ROOT / "configs/tone.yaml", settings=settings)
        for n in range(count)
    ]
    async with (
        from_url(url) as redis,
        Workers.start(specs, directory, fake_clocks=fake_clocks) as workers,
    ):
        fleet = Orchestrator(redis, "tts")
        for name in workers.names:
            await fleet.worker_is(name, "ready", 60)
        yield workers, fleet


class TestWorkers:
    async def test_who_was_killed_drained_or_poisoned_comes_back(
        self, tmp_path: Path, packs: Path
    ) -> None:
        async with EmbeddedServer.start() as server:
            async with fleet_of(1, server.url, tmp_path, packs) as (workers, fleet):
                worker = workers["w0"]
                for number in (signal.SIGKILL, signal.SIGTERM):
                    pid = worker.pid
                    assert worker.signal(number)
                    with anyio.fail_after(HANG_S):
                        await worker.ended()
                        while (await fleet.worker("w0")).get("pid") in (None, str(pid)):
                            await anyio.sleep(0.05)
                    await fleet.worker_is("w0", "ready", 60)
                await fleet.add("p", "Poison is what this is.", model=sabotage.MODEL)
                heard = await fleet.hear("p", timeout_s=60)
                assert heard.end.reason == "failed"
                assert "max_deliveries" in heard.end.error
                assert worker.starts == 3 + 3
            assert workers.findings == []

    async def test_an_end_that_nobody_asked_for_is_a_finding(
        self, tmp_path: Path, packs: Path
    ) -> None:
        async with EmbeddedServer.start() as server:
            async with fleet_of(1, server.url, tmp_path, packs) as (workers, _):
                worker = workers["w0"]
                assert worker.pid is not None
                os.kill(worker.pid, signal.SIGKILL)  # past the supervisor
                with anyio.fail_after(HANG_S):
                    await worker.ended()
                with worker.log.open("a") as log:
                    log.write("Traceback (most recent call last):\n  x\nValueError: odd\n")
            assert workers.findings == [
                "w0: start 1 ended with status -9",
                "w0: traceback: 'ValueError: odd'",
            ]

    @pytest.mark.skipif(library() is None, reason="libfaketime is not installed")
    async def test_a_wall_clock_jumps_and_nothing_else_does(
        self, tmp_path: Path, packs: Path
    ) -> None:
        text = "One two three four five six seven. Eight nine ten eleven twelve."
        async with (
            EmbeddedServer.start() as server,
            fleet_of(1, server.url, tmp_path, packs, fake_clocks=True) as (workers, fleet),
        ):
            worker = workers["w0"]
            assert worker.clock is not None
            await fleet.add("s", text, seed=1)
            await fleet.hear("s", until=20)
            worker.clock.jump(-3600)
            heard = await fleet.hear("s")
            worker.clock.jump(3600)
            await fleet.add("s", text, seed=1)
            assert (await fleet.hear("s", 2)).pcm == heard.pcm
            assert worker.starts == 1


class TestServers:
    async def test_a_full_disk_refuses_writes_until_there_is_room(self, tmp_path: Path) -> None:
        async with topologies.start("standalone", tmp_path) as under:
            assert isinstance(under, Standalone)
            if under.disk is None:
                pytest.skip("nothing can be mounted here")
            under.disk.fill()
            with anyio.fail_after(HANG_S), pytest.raises(RedisError, match="MISCONF"):
                while True:
                    await under.node.call("SET", "key", "x" * 65536)
            assert not await under.is_whole()
            under.disk.empty()
            await servers.settled(under)
            await under.node.call("SET", "key", "kept")
            await under.node.server.kill()
            await under.node.server.restart()
            assert await under.node.call("GET", "key") == "kept"

    @pytest.mark.parametrize("topology", ["sentinel", "cluster"])
    async def test_a_tail_is_lost(self, topology: kinds.Topology, tmp_path: Path) -> None:
        async with topologies.start(topology, tmp_path) as under:
            injection = Injection(0.0, "lost_tail", 0.5, 1)
            primary = injection.random().choice(await under.primaries())
            replica = await under.replica_of(primary)
            key = await _key_of(under, primary)
            await primary.call("SET", key, "early")
            await primary.call("WAIT", 1, 5000)

            async def write_on() -> None:
                for index in range(10_000):
                    try:
                        await primary.call("SET", key, index)
                    except (RedisError, OSError, RuntimeError):
                        return

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(write_on)
                world: Any = SimpleNamespace(servers=under)
                done = await failover.lost_tail(world, injection)
                tasks.cancel_scope.cancel()
            assert done.forgets == "tail"
            assert await under.primaries() != [primary]
            assert replica in await under.primaries()
            await servers.settled(under)
            assert await replica.call("GET", key) is not None
            assert await under.replica_of(replica) is primary

    async def test_a_slot_moves_with_all_its_keys(self, tmp_path: Path) -> None:
        async with topologies.start("cluster", tmp_path) as under:
            assert isinstance(under, Cluster)
            keys = [f"{{s1}}:{index}" for index in range(25)]
            source = await under.owner("{s1}")
            target = next(one for one in await under.primaries() if one is not source)
            for key in keys:
                await source.call("SET", key, key)
            await resharding.move(under, await under.slot("{s1}"), source, target)
            assert await under.owner("{s1}") is target
            assert [await target.call("GET", key) for key in keys] == keys
            await servers.settled(under)


async def _key_of(under: servers.Servers, primary: Any) -> str:
    """A key that this primary has."""
    for index in range(1000):
        if await under.owner(f"key{index}") is primary:
            return f"key{index}"
    raise LookupError


class TestRecords:
    async def test_a_dead_worker_offers_nothing_though_its_record_is_there(
        self, tmp_path: Path, packs: Path
    ) -> None:
        async with (
            topologies.start("standalone", tmp_path) as under,
            fleet_of(1, under.url, tmp_path, packs) as (workers, fleet),
            Records.opened(under, Keys()) as records,
        ):
            assert (await records.capacity(workers)).ready == 1
            record = await fleet.worker("w0")
            workers["w0"].signal(signal.SIGKILL)
            await workers["w0"].ended()
            await fleet.redis.hset(fleet.keys.worker("w0"), mapping=record)
            assert (await records.capacity(workers)).ready == 0
            assert await records.ready(workers) == []

    async def test_what_was_left_behind_is_found(self, tmp_path: Path) -> None:
        keys = Keys()
        async with (
            topologies.start("standalone", tmp_path) as under,
            Records.opened(under, keys) as records,
        ):
            (node,) = await under.primaries()
            clean = await records.final_state((), ("tone-test",))
            assert (clean.without_ttl, clean.queued, clean.live_sessions) == (
                [],
                {"tone-test": 0},
                [],
            )
            queue = keys.requests("tone-test")
            await node.call("XGROUP", "CREATE", queue, "workers", "0", "MKSTREAM")
            await node.call("XADD", queue, "*", "session", "s")
            await node.call("XADD", queue, "*", "session", "t")
            await node.call(
                "XREADGROUP", "GROUP", "workers", "w", "COUNT", 1, "STREAMS", queue, ">"
            )
            await node.call("HSET", keys.session("s"), "state", "speaking")
            await node.call("XADD", keys.dead, "*", "request", "r1")
            await node.call("ZADD", keys.workers, 1, "w")
            with anyio.move_on_after(1):
                await records.final_state((), ("tone-test",))
                pytest.fail("this is not quiet")
            found = await records.look((), ("tone-test",))
            assert found.without_ttl == [keys.session("s")]
            assert found.queued == {"tone-test": 2}
            assert found.pending == {"tone-test": 1}
            assert found.live_sessions == ["s"]
            assert found.dead_letters == [{"request": "r1"}]
