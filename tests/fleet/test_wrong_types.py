"""A key of another type where one of ours belongs: healed, worked around or answered.

What the fleet alone writes (lease, records, lists, audio) is debris and makes way. What an
orchestrator writes (queue, text, control) is not the worker's to remove: whom it concerns is told,
nobody else is. All tests of a session's keys share one worker, which must go on.
"""

from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

from tests.harness.fleet import HANG_S, Orchestrator, serving
from tests.harness.steady import ANSWER_S, TEXT, TIMES, Steady

pytestmark = pytest.mark.anyio

SESSION_KEYS = ("audio", "session", "lease", "spoken", "control")


@pytest.fixture
def fleet(steady_fleet: Steady) -> Steady:
    return steady_fleet


async def spoil(redis: Any, key: str, *, instead_of: str) -> None:
    """Put a string in the key's place, a list where it is to be a string."""
    await redis.delete(key)
    if instead_of == "string":
        await redis.rpush(key, "debris")
        await redis.expire(key, 60)
    else:
        await redis.set(key, "debris", ex=60)


async def spoil_session(fleet: Orchestrator, kind: str, session: str) -> str:
    key = getattr(fleet.keys, kind)(session)
    await spoil(fleet.redis, key, instead_of="string" if kind == "control" else "")
    return key


class TestBeforeATurn:
    @pytest.mark.parametrize("kind", SESSION_KEYS)
    async def test_it_is_spoken_all_the_same(self, fleet: Steady, kind: str) -> None:
        session = fleet.new_session()
        key = await spoil_session(fleet, kind, session)
        await fleet.add(session, TEXT)
        await fleet.add(session, TEXT)
        with anyio.fail_after(HANG_S):  # who reads it meanwhile is told that it is no stream
            while kind == "audio" and await fleet.redis.type(key) != b"stream":
                await anyio.sleep(0.01)
        assert [t.end.reason for t in await fleet.turns(session, 2)] == ["completed"] * 2
        assert (await fleet.state(session))["state"] == "idle"

    async def test_a_text_stream_that_is_none_fails_its_turn(self, fleet: Steady) -> None:
        session = fleet.new_session()
        key = fleet.keys.text(session, "r")
        await spoil(fleet.redis, key, instead_of="stream")
        await fleet.add(session, request="r", stream=1)
        heard = await fleet.hear(session, timeout_s=ANSWER_S)
        assert heard.end.reason == "failed"
        assert (heard.end.error or "").startswith("text stream: WRONGTYPE")
        await fleet.settled()
        assert await fleet.redis.xlen(key) == 0


class TestDuringATurn:
    @pytest.mark.parametrize("kind", ["session", "lease", "spoken", "control"])
    async def test_it_is_spoken_to_its_end(self, fleet: Steady, kind: str) -> None:
        calm, session = fleet.new_session(), fleet.new_session()
        for name in (calm, session):
            await fleet.add(name, TEXT, seed=1, lead_ms=200)
        await fleet.hear(session, until=15)
        await spoil_session(fleet, kind, session)
        await fleet.add(session, TEXT)
        first, second = await fleet.turns(session, 2)
        assert [first.end.reason, second.end.reason] == ["completed", "completed"]
        assert first.pcm == (await fleet.hear(calm)).pcm

    @pytest.mark.parametrize("resent", [True, False], ids=["resent", "made-again"])
    async def test_an_audio_key_that_is_lost_for_a_second_loses_no_end(
        self, fleet: Steady, resent: bool
    ) -> None:
        """Whoever put it there takes it away again, or what has taken its place."""
        calm, session = fleet.new_session(), fleet.new_session()
        text = " ".join([TEXT] * (3 if resent else 6))  # six are more than the resend window
        await fleet.add(calm, text, seed=1)
        await fleet.add(session, text, seed=1, lead_ms=200)
        await fleet.add(session, TEXT)
        await fleet.hear(session, until=10 if resent else 300)
        key = await spoil_session(fleet, "audio", session)
        await anyio.sleep(1.0)
        await fleet.redis.delete(key)
        first, second = await fleet.turns(session, 2)
        assert [first.end.reason, second.end.reason] == ["completed"] * 2
        assert first.pcm == (await fleet.hear(calm)).pcm
        await fleet.settled()

    async def test_a_text_stream_that_is_lost_fails_its_turn(self, fleet: Steady) -> None:
        session = fleet.new_session()
        await fleet.add(session, request="r", stream=1)
        await fleet.write(session, "r", text=TEXT, flush=1)
        await fleet.hear(session, until=1)
        await spoil(fleet.redis, fleet.keys.text(session, "r"), instead_of="stream")
        heard = await fleet.hear(session)
        assert heard.end.reason == "failed"
        assert (heard.end.error or "").startswith("text stream: WRONGTYPE")


class TestForeignEntries:
    """The right type, and entries that no worker wrote."""

    async def test_an_audio_stream_of_larger_ids_goes_on_behind_them(self, fleet: Steady) -> None:
        session = fleet.new_session()
        stray = (await fleet.redis.xadd(fleet.keys.audio(session), {"pcm": "?"})).decode()
        await fleet.add(session, TEXT)
        heard = await fleet.hear(session, int(stray.split("-")[0]) + 1)
        assert heard.end.reason == "completed"

    @pytest.mark.parametrize("top", ["18446744073709551615-18446744073709551615", f"{2**64 - 1}-7"])
    @pytest.mark.parametrize("fields", [{"pcm": "?"}, {"event": "end"}])
    async def test_an_audio_stream_that_is_full_fails_the_turn(
        self, fleet: Steady, top: str, fields: dict[Any, Any]
    ) -> None:
        session = fleet.new_session()
        await fleet.redis.xadd(fleet.keys.audio(session), fields, id=top)
        await fleet.redis.expire(fleet.keys.audio(session), 60)
        entry = await fleet.add(session, TEXT)
        assert (await fleet.dead_letter(entry))["reason"] == "failed"

    @pytest.mark.parametrize(
        "stray",
        [{"w:": "x"}, {"w:1-1": "x"}, {"w:a-b:m": "x"}, {b"w:\xff": b"\xff"}],
        ids=str,
    )
    @pytest.mark.parametrize("during", [False, True], ids=["before", "during"])
    async def test_a_lease_with_what_cannot_be_read(
        self, fleet: Steady, stray: dict[Any, Any], during: bool
    ) -> None:
        session = fleet.new_session()
        key = fleet.keys.lease(session)
        if during:
            await fleet.add(session, TEXT, lead_ms=200)
            await fleet.hear(session, until=1)
        await fleet.redis.hset(key, mapping=stray)
        await fleet.add(session, TEXT)
        other = fleet.new_session()
        await fleet.control(other, "pause")
        await fleet.add(other, TEXT)
        await fleet.control(other, "stop")  # the watch still watches
        assert (await fleet.hear(other, timeout_s=ANSWER_S)).end.reason == "stopped"
        reasons = [turn.end.reason for turn in await fleet.turns(session, 1 + during)]
        assert reasons == ["completed"] * (1 + during)


class TestFleetKeys:
    """Keys that all share; each test has a worker of its own."""

    @pytest.fixture
    def fleet(self, redis: Redis, prefix: str) -> Orchestrator:
        return Orchestrator(redis, prefix)

    async def speaks(self, fleet: Orchestrator, session: str) -> None:
        await fleet.add(session, TEXT)
        assert (await fleet.hear(session)).end.reason == "completed"
        await fleet.settled()

    async def becomes(self, fleet: Orchestrator, key: str, kind: bytes) -> None:
        with anyio.fail_after(HANG_S):
            while await fleet.redis.type(key) != kind:
                await anyio.sleep(0.01)

    async def test_records_and_lists_are_healed(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        keys = fleet.keys
        healed = {keys.workers: b"zset", keys.model(fleet.model): b"hash"}
        for key in healed:
            await spoil(fleet.redis, key, instead_of="record")
        async with serving(redis_url, prefix, **TIMES):
            healed[keys.worker("w1")] = b"hash"
            for _ in range(2):
                for key, kind in healed.items():
                    await self.becomes(fleet, key, kind)
                await self.speaks(fleet, f"s{_}")
                for key in healed:
                    await spoil(fleet.redis, key, instead_of="record")
            for key, kind in healed.items():
                await self.becomes(fleet, key, kind)
        assert not await fleet.redis.exists(keys.worker("w1"))
        assert await fleet.redis.zcard(keys.workers) == 0

    async def test_the_list_of_workers_may_hold_anything(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        strays: dict[Any, float] = {b"\xff\xfe": 1, "": 2, "gone": 3, "ahead": float("inf")}
        await fleet.redis.zadd(fleet.keys.workers, strays)
        async with serving(redis_url, prefix, **(TIMES | {"dead_after_ms": 300})):
            with anyio.fail_after(HANG_S):
                while await fleet.redis.zcard(fleet.keys.workers) > 2:
                    await anyio.sleep(0.01)
            assert await fleet.redis.zrange(fleet.keys.workers, 0, -1) == [b"w1", b"ahead"]
            await self.speaks(fleet, "s")

    async def test_a_stranger_among_the_consumers_keeps_nothing(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        queue = fleet.keys.requests(fleet.model)
        await fleet.redis.xgroup_create(queue, "workers", "0", mkstream=True)
        await fleet.redis.xgroup_createconsumer(queue, "workers", b"\xff\xfe")
        await fleet.add("s", TEXT)
        await fleet.redis.xreadgroup("workers", "stranger", {queue: ">"})
        async with serving(redis_url, prefix, **(TIMES | {"dead_after_ms": 300})):
            assert (await fleet.hear("s")).end.reason == "completed"
            await fleet.settled()

    async def test_dead_letters_that_find_no_place_hold_nobody_up(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        await spoil(fleet.redis, fleet.keys.dead, instead_of="stream")
        async with serving(redis_url, prefix, **TIMES):
            await fleet.add("s", TEXT, speed=9)
            assert (await fleet.hear("s", timeout_s=ANSWER_S)).end.reason == "rejected"
            await fleet.redis.xadd(fleet.keys.requests(fleet.model), {"text": TEXT})
            await fleet.settled()
            await self.speaks(fleet, "other")
            await fleet.redis.delete(fleet.keys.dead)
            await fleet.add("s", TEXT, speed=9)
            await fleet.settled()
            assert [letter["session"] for letter in await fleet.dead()] == ["s"]

    async def test_the_wake_makes_way(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        wake = fleet.keys.wake(fleet.model)
        await spoil(fleet.redis, wake, instead_of="string")
        async with serving(redis_url, prefix, name="w1", **TIMES) as first:
            await fleet.add("s", TEXT, lead_ms=200)
            await fleet.hear("s", until=3)
            async with serving(redis_url, prefix, name="w2", **TIMES):
                first.drain()
                heard = await fleet.hear("s")
                assert heard.end.reason == "completed"
                assert await fleet.redis.type(wake) == b"string"
                await self.speaks(fleet, "other")

    async def test_a_queue_that_is_none_is_waited_for(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        queue = fleet.keys.requests(fleet.model)
        await spoil(fleet.redis, queue, instead_of="stream")
        async with serving(redis_url, prefix, **TIMES):
            await anyio.sleep(0.2)
            assert (await fleet.worker("w1"))["state"] == "ready"
            await fleet.redis.delete(queue)
            await self.speaks(fleet, "s")

    @pytest.mark.parametrize("other", ["of another type", "gone", "without its group"])
    async def test_a_queue_that_is_lost_in_mid_turn_ends_no_turn(
        self, fleet: Orchestrator, redis_url: str, prefix: str, other: str
    ) -> None:
        queue = fleet.keys.requests(fleet.model)
        async with serving(redis_url, prefix, **TIMES):
            for _ in range(2):
                await fleet.add("s", TEXT, lead_ms=200)
            await fleet.hear("s", until=1)
            if other == "of another type":
                await spoil(fleet.redis, queue, instead_of="stream")
            elif other == "gone":
                await fleet.redis.delete(queue)
            else:
                await fleet.redis.xgroup_destroy(queue, "workers")
            assert [turn.end.reason for turn in await fleet.turns("s", 2)] == ["completed"] * 2
            assert (await fleet.worker("w1"))["state"] == "ready"
            if other == "of another type":
                await fleet.redis.delete(queue)
            await self.speaks(fleet, "other")
            assert int((await fleet.worker("w1"))["slots_total"]) == 16
