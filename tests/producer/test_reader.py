"""Reading over lost connections, from any place, for many sessions; the test plays the worker."""

import time
from collections.abc import AsyncGenerator
from statistics import median

import anyio
import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from tests.producer.fake_worker import MODEL, FakeWorker, pcm
from voicefleet import (
    End,
    EntryId,
    ForeignEntry,
    Frame,
    ServerRefused,
    ServerUnreachable,
    Start,
    StreamGap,
    Turn,
    VoiceFleet,
)
from voicefleet.embedded_server import EmbeddedServer
from voicefleet.producer.reading import reader as reader_module

pytestmark = pytest.mark.anyio


@pytest.fixture
async def fleet(redis_url: str, prefix: str) -> AsyncGenerator[VoiceFleet]:
    async with VoiceFleet(redis_url, prefix=prefix) as fleet:
        yield fleet


@pytest.fixture
async def worker(redis: Redis, prefix: str) -> FakeWorker:
    worker = FakeWorker(redis, prefix)
    await worker.register()
    return worker


async def kill_readers(redis: Redis) -> int:
    """CLIENT KILL of every connection that is blocked in an XREAD of a client under test."""
    killed = 0
    for client in await redis.client_list():
        if client["name"] == "voicefleet" and client["cmd"] == "xread":
            killed += await redis.client_kill_filter(_id=client["id"])
    return killed


async def test_reading_survives_lost_connections(
    fleet: VoiceFleet, worker: FakeWorker, redis: Redis
) -> None:
    turn = await fleet.session("s1").speak("x", model=MODEL).send()
    asked = await worker.take()
    got: list[Frame] = []

    async def read() -> None:
        got.extend([frame async for frame in turn])

    killed = 0
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await worker.start("s1", 1, asked.name)
            for n in range(1, 201):
                await worker.frames("s1", 1, n, n)
                if n % 10 == 0:
                    killed += await kill_readers(redis)
                    await anyio.sleep(0.002)
            await worker.end("s1", 1, asked.name, 200)
    assert killed >= 5
    assert [frame.pcm for frame in got] == [pcm(1, n) for n in range(1, 201)]


async def test_a_server_that_comes_back_is_found_again() -> None:
    async with (
        EmbeddedServer.start() as server,
        VoiceFleet(server.url, prefix="t") as fleet,
        Redis(port=server.port) as redis,
    ):
        worker = FakeWorker(redis, "t")
        listener = await fleet.session("s1").listen().open()
        await server.kill()
        await server.restart()
        await worker.start("s1", 1, "r1")
        with anyio.fail_after(30):
            assert isinstance(await anext(listener), Start)


async def test_a_server_that_stays_away_is_an_error() -> None:
    async with (
        EmbeddedServer.start() as server,
        VoiceFleet(server.url, reconnect_for=0.2) as fleet,
    ):
        listener = await fleet.session("s1").listen().open()
        await server.kill()
        with anyio.fail_after(30), pytest.raises(ServerUnreachable):
            await anext(listener)


async def test_a_closed_client_leaves_nobody_waiting(redis_url: str, prefix: str) -> None:
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                assert [entry async for entry in listener] == []

            async with VoiceFleet(redis_url, prefix=prefix) as fleet:
                listener = await fleet.session("s1").listen().open()
                tasks.start_soon(listen)
                await anyio.sleep(0.02)


async def test_no_server_at_all() -> None:
    with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1"):
        async with VoiceFleet("redis://127.0.0.1:1"):
            pass


async def test_a_wrong_password() -> None:
    async with EmbeddedServer.start(password="secret") as server:
        with pytest.raises((ServerRefused, ServerUnreachable)) as caught:
            async with VoiceFleet(f"redis://:wrong@127.0.0.1:{server.port}"):
                pass
        assert "wrong" not in str(caught.value).split("127.0.0.1")[0]


async def test_a_new_session_joins_the_running_read_at_once(
    fleet: VoiceFleet, worker: FakeWorker
) -> None:
    await fleet.session("quiet").listen().open()
    await anyio.sleep(0.05)  # the reader blocks on a session that says nothing
    waits: list[float] = []
    for n in range(1, 20):
        listener = await fleet.session(f"s{n}").listen().open()
        sent = time.perf_counter()
        await worker.start(f"s{n}", 1, "r")
        await anext(listener)
        waits.append(time.perf_counter() - sent)
    assert median(waits) < 0.02
    assert max(waits) < 1.0  # never the XREAD's own timeout


async def test_without_the_right_to_unblock() -> None:
    rights = "user app on >pw ~* &* +@all -@dangerous"
    async with (
        EmbeddedServer.start(config=[rights]) as server,
        Redis(port=server.port) as redis,
        VoiceFleet(f"redis://app:pw@127.0.0.1:{server.port}", prefix="t") as fleet,
    ):
        worker = FakeWorker(redis, "t")
        quiet = await fleet.session("quiet").listen().open()
        await anyio.sleep(0.02)
        with anyio.fail_after(4):
            for n in range(5):
                listener = await fleet.session(f"s{n}").listen().open()
                await worker.start(f"s{n}", 1, "r")
                assert isinstance(await anext(listener), Start)
        quiet.close()


async def test_many_sessions_on_one_connection(
    fleet: VoiceFleet, worker: FakeWorker, redis: Redis
) -> None:
    counts: dict[str, int] = {}

    async def read(turn: Turn) -> None:
        counts[turn.session] = len([frame async for frame in turn])

    turns = [await fleet.session(f"s{n}").speak("x", model=MODEL).send() for n in range(40)]
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for turn in turns:
                tasks.start_soon(read, turn)
            for _ in turns:
                tasks.start_soon(worker.speak, await worker.take(), 1, 50)
            readers = [c for c in await redis.client_list() if c["cmd"] == "xread"]
            assert len(readers) <= 1
    assert set(counts.values()) == {50} and len(counts) == 40


async def test_a_lagging_listener_holds_nobody_up_and_loses_nothing(
    fleet: VoiceFleet, worker: FakeWorker
) -> None:
    lagging = await fleet.session("s1").listen().open()
    await worker.start("s1", 1, "r")
    await worker.frames("s1", 1, 1, 1000)
    other = fleet.session("s1").listen()
    with anyio.fail_after(30):
        ahead = [(await anext(other)).id.n for _ in range(1001)]
        behind = [(await anext(lagging)).id.n for _ in range(1001)]
    assert ahead == behind == list(range(1001))


async def test_places_to_listen_from(fleet: VoiceFleet, worker: FakeWorker) -> None:
    for turn in (1, 2):
        await worker.start("s1", turn, f"r{turn}")
        await worker.frames("s1", turn, 1, 3)
        await worker.end("s1", turn, f"r{turn}", 3)
    session = fleet.session("s1")
    assert (await anext(session.listen())).id == EntryId(1, 0)
    assert (await anext(session.listen(after="1-2"))).id == EntryId(1, 3)
    assert (await anext(session.listen(after="1-4"))).id == EntryId(2, 0)
    assert (await anext(session.listen(after=EntryId(2, 3)))).id == EntryId(2, 4)
    assert (await anext(session.listen(from_turn=2))).id == EntryId(2, 0)
    async with session.listen(after="$") as listener:
        await worker.end("s1", 3, "r3", 0, "stopped")
        entry = await anext(listener)
        assert isinstance(entry, End) and listener.last == EntryId(3, 1)
    assert [entry async for entry in listener] == []
    with pytest.raises(ValueError, match="not both"):
        session.listen(after="$", from_turn=1)
    with pytest.raises(ValueError):
        session.listen(after="yesterday")


async def test_numbers_that_a_failover_left_out_are_no_gap(
    fleet: VoiceFleet, worker: FakeWorker
) -> None:
    for turn in (1, 4):
        await worker.start("s1", turn, f"r{turn}")
        await worker.frames("s1", turn, 1, 1)
        await worker.end("s1", turn, f"r{turn}", 1)
    async with fleet.session("s1").listen(after="1-0") as listener:
        ids = [str((await anext(listener)).id) for _ in range(5)]
    assert ids == ["1-1", "1-2", "4-0", "4-1", "4-2"]


async def test_listening_from_a_place_that_was_trimmed(
    fleet: VoiceFleet, worker: FakeWorker, redis: Redis
) -> None:
    await worker.start("s1", 1, "r1")
    await worker.frames("s1", 1, 1, 10)
    await redis.xtrim(worker.keys.audio("s1"), minid="1-6", approximate=False)
    session = fleet.session("s1")
    with pytest.raises(StreamGap, match="between 1-2 and 1-6"):
        await anext(session.listen(after="1-2"))
    with pytest.raises(StreamGap):
        await anext(session.listen(from_turn=1))
    assert (await anext(session.listen(after="1-5"))).id.n == 6
    assert (await anext(session.listen())).id.n == 6


async def test_what_the_protocol_does_not_know_is_an_error(
    fleet: VoiceFleet, worker: FakeWorker, redis: Redis
) -> None:
    key = worker.keys.audio("s1")
    await redis.xadd(key, {"event": "party"}, id="1-0")
    await redis.expire(key, 60)
    with pytest.raises(ForeignEntry, match="event"):
        await anext(fleet.session("s1").listen())


async def test_a_key_of_another_type_fails_its_session_alone(
    fleet: VoiceFleet, worker: FakeWorker, redis: Redis
) -> None:
    good = await fleet.session("good").listen().open()
    bad = await fleet.session("bad").listen().open()
    await redis.set(worker.keys.audio("bad"), "debris", ex=60)
    again = fleet.session("bad").listen()
    with anyio.fail_after(30):
        await worker.start("good", 1, "r")
        assert isinstance(await anext(good), Start)
        with pytest.raises(ServerRefused, match="WRONGTYPE"):
            await anext(again)
    bad.close()


async def test_a_stream_that_was_begun_anew(
    fleet: VoiceFleet, worker: FakeWorker, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "SILENCE_S", 0.1)
    monkeypatch.setattr(reader_module, "BLOCK_MS", 100)
    listener = fleet.session("s1").listen()
    await worker.end("s1", 7, "r", 0, "stopped")
    assert (await anext(listener)).id == EntryId(7, 1)
    await redis.delete(worker.keys.audio("s1"))
    await worker.start("s1", 1, "r2")
    with anyio.fail_after(30):
        assert (await anext(listener)).id == EntryId(1, 0)


async def test_control_is_a_level_with_a_ttl(
    fleet: VoiceFleet, worker: FakeWorker, redis: Redis
) -> None:
    session = fleet.session("s1", model=MODEL)
    key = worker.keys.control("s1")
    for act, value in (
        (session.pause(), b"pause"),
        (session.resume(), b"resume"),
        (session.stop(), b"stop"),
        (session.stop("r7"), b"stop:r7"),
    ):
        await act
        assert await redis.get(key) == value
        assert 3500 < await redis.ttl(key) <= 3600
    await redis.expire(key, 5)
    await session.speak("x").send()
    assert await redis.ttl(key) > 3500
    await worker.take()


async def test_discovery(fleet: VoiceFleet, worker: FakeWorker, redis: Redis) -> None:
    await worker.register("w2", slots_free=4, state="draining")
    await worker.register("w3", slots_free=1)
    await redis.zadd(worker.keys.workers, {"dead": 1})
    await redis.hset(worker.keys.worker("odd"), mapping={"state": "dancing"})
    await redis.expire(worker.keys.worker("odd"), 60)
    await redis.zadd(worker.keys.workers, {"odd": 1})
    workers = await fleet.workers()
    assert [w.name for w in workers] == ["w1", "w2", "w3"]
    assert workers[0].record.first_audio_p50_ms == 12.5
    models = await fleet.models()
    assert models[MODEL].voices == ("a", "b") and models[MODEL].synthetic
    capacity = await fleet.capacity(MODEL)
    assert (capacity.workers, capacity.slots_total, capacity.slots_free) == (2, 32, 16)
    assert capacity.requests == 0
    assert (await fleet.capacity("nope")).workers == 0


async def test_on_a_cluster(cluster_url: str, cluster: RedisCluster, prefix: str) -> None:
    worker = FakeWorker(cluster, prefix)
    await worker.register()
    async with VoiceFleet(cluster_url, prefix=prefix) as fleet:
        turns = [await fleet.session(f"s{n}").speak("x", model=MODEL).send() for n in range(12)]
        for _ in turns:
            await worker.speak(await worker.take(), 1, 10)
        with anyio.fail_after(30):
            for turn in turns:
                assert [f.id.n async for f in turn] == list(range(1, 11))
        early = await fleet.session("s0").listen(after="$").open()
        late = fleet.session("s0").listen(from_turn=1)
        with anyio.fail_after(30):
            assert (await anext(late)).id == EntryId(1, 0)
            await worker.start("s0", 2, "r")
            assert (await anext(early)).id == EntryId(2, 0)
        assert list(await fleet.models()) == [MODEL]
        key = worker.keys.session("s5")
        await cluster.hset(key, mapping={"state": "idle"})
        await cluster.expire(key, 60)
        assert [name async for name, _ in fleet.sessions()] == ["s5"]
        await fleet.session("s0").pause()
