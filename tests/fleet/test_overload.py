"""More is asked for than there is: who waits, who is answered, and who is not disturbed."""

import time

import anyio
import pytest
from redis.asyncio import Redis

from tests.harness.fleet import HANG_S, Orchestrator, serving
from voicefleet.schemas.keys import GROUP
from voicefleet.worker.engines.tone.family import ToneConfig

pytestmark = pytest.mark.anyio

LONG = "One two three four five six seven eight nine ten. " * 40
SHORT = "Go."


def in_ms(ms: int) -> int:
    """A deadline from now on; server and test share a clock."""
    return int(time.time() * 1000) + ms


class TestWithoutAFreeSlot:
    async def test_what_passes_its_deadline_is_answered_and_nobody_disturbed(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix, slots=2):
            for session in ("a", "b"):
                await fleet.add(session, LONG)
                await fleet.hear(session, until=5)
            await fleet.add("late", SHORT, deadline_ms=in_ms(200))
            await fleet.add("a", SHORT, request="behind", deadline_ms=in_ms(200))
            await fleet.add("patient", SHORT, deadline_ms=in_ms(60_000))
            heard = await fleet.hear("late")
            assert (heard.end.reason, heard.end.frames) == ("expired", 0)
            assert (await fleet.state("a"))["state"] == "speaking"
            with anyio.fail_after(HANG_S):  # until its next heartbeat
                while (await fleet.worker("w1"))["sessions"] != "2":
                    await anyio.sleep(0.05)
            for session in ("a", "b"):
                await fleet.control(session, f"stop:{(await fleet.state(session))['request']}")
            assert (await fleet.hear("patient")).end.reason == "completed"
            first, second = await fleet.turns("a", 2)
            assert [first.end.reason, second.end.reason] == ["stopped", "expired"]
            await fleet.settled()

    async def test_tenants_take_turns(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix, slots=1, tone=ToneConfig(latency_ms=30)):
            await fleet.add("first", LONG)
            await fleet.hear("first", until=5)
            for index in range(100):
                await fleet.add(f"greedy:{index}", SHORT, lead_ms=0)
            for index in range(5):
                await fleet.add(f"modest:{index}", SHORT, lead_ms=0)
            with anyio.fail_after(HANG_S):
                while (await fleet.parked()) < 105:
                    await anyio.sleep(0.05)
            await fleet.control("first", "stop")
            for index in range(5):
                assert (await fleet.hear(f"modest:{index}")).end.reason == "completed"
            spoken = [await fleet.redis.exists(fleet.keys.audio(f"greedy:{i}")) for i in range(100)]
            assert sum(spoken) <= 8, "five of each, and who was next"
            await fleet.settled()

    async def test_a_backlog_outlives_the_worker_that_parked_it(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix, slots=1, name="a"):
            await fleet.add("first", LONG)
            await fleet.hear("first", until=5)
            for index in range(5):
                await fleet.add(f"s{index}", SHORT, lead_ms=0)
            with anyio.fail_after(HANG_S):
                while (await fleet.parked()) < 5:
                    await anyio.sleep(0.05)
        async with serving(redis_url, prefix, slots=4, name="b"):
            for index in range(5):
                assert (await fleet.hear(f"s{index}")).end.reason == "completed"
            await fleet.control("first", "stop")
            await fleet.settled()


async def test_a_flood_in_one_session_is_answered_in_its_order(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix, slots=2, max_waiting_turns=5):
        await fleet.add("s", LONG, request="r0")
        await fleet.hear("s", until=5)
        for index in range(1, 201):
            await fleet.add("s", SHORT, request=f"r{index}", lead_ms=0)
        with anyio.fail_after(HANG_S):
            while len(await fleet.dead()) < 195:
                await anyio.sleep(0.05)
        # Who is refused holds neither a slot nor a place: others go on.
        await fleet.add("other", SHORT, lead_ms=0)
        assert (await fleet.hear("other")).end.reason == "completed"
        await fleet.control("s", "stop:r0")
        turns = await fleet.turns("s", 201)
        assert [turn.end.request for turn in turns] == [f"r{index}" for index in range(201)]
        reasons = [turn.end.reason for turn in turns]
        assert reasons == ["stopped", *["completed"] * 5, *["rejected"] * 195]
        assert (turns[-1].end.error or "").startswith("max_waiting_turns: 5 ")
        await fleet.settled()


async def test_an_interruption_asked_for_twice_interrupts_not_itself(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    """A client on a full fleet that is unsure asks again before it was heard."""
    async with serving(redis_url, prefix, slots=1):
        await fleet.add("other", LONG)
        await fleet.hear("other", until=5)
        for _ in range(2):
            await fleet.add("s", SHORT, request="r1", interrupt=1)
        await fleet.add("s", SHORT, request="r2")
        await fleet.add("s", SHORT, request="r1", interrupt=1)
        await fleet.control("other", "stop")
        first, second = await fleet.turns("s", 2)
        assert [first.end.request, first.end.reason] == ["r1", "completed"]
        assert [second.end.request, second.end.reason] == ["r2", "completed"]
        await fleet.settled()


class TestStreamedText:
    async def test_has_a_limit(self, fleet: Orchestrator, redis_url: str, prefix: str) -> None:
        async with serving(redis_url, prefix, max_stream_chars=500):
            await fleet.add("s", request="r", stream=1, lead_ms=0)
            for _ in range(20):
                await fleet.write("s", "r", text="Forty characters are about this long ok. ")
            heard = await fleet.hear("s")
            assert heard.end.reason == "failed"
            assert (heard.end.error or "").startswith("text_too_long: at most 500 characters")
            assert heard.frames, "what came before is spoken"
            await fleet.settled()

    async def test_of_many_tiny_pieces_is_spoken_whole(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        text = "One two three four five six seven eight nine ten. " * 6
        async with serving(redis_url, prefix):
            await fleet.add("calm", text, seed=1, lead_ms=0)
            await fleet.add("s", request="r", stream=1, seed=1, lead_ms=0)
            key = fleet.keys.text("s", "r")
            async with fleet.redis.pipeline() as pipe:
                for char in text:
                    pipe.xadd(key, {"text": char})
                    pipe.xadd(key, {"text": ""})
                pipe.xadd(key, {"end": 1})
                pipe.expire(key, 60)
                await pipe.execute()
            assert (await fleet.hear("s")).pcm == (await fleet.hear("calm")).pcm

    async def test_that_comes_far_faster_than_it_is_spoken_is_kept_back_and_lost_nowhere(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        sentence = "One two three four five six seven eight nine ten. "
        async with serving(redis_url, prefix):
            await fleet.add("s", request="r", stream=1, lead_ms=0)
            for _ in range(4):
                await fleet.write("s", "r", text=sentence * 150)
            await fleet.write("s", "r", end=1)
            heard = await fleet.hear("s", timeout_s=60)
            assert heard.end.reason == "completed"
            spoken = " ".join(frame.text for frame in heard.frames if frame.text)
            assert spoken == (sentence * 600).strip()

    async def test_written_after_the_end_leaves_no_key_behind(
        self, fleet: Orchestrator, redis: Redis, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix):
            await fleet.add("s", request="r", stream=1, lead_ms=0)
            await fleet.redis.xadd(fleet.keys.text("s", "r"), {"text": SHORT, "end": 1})
            await fleet.hear("s")
            await redis.xadd(fleet.keys.text("s", "r"), {"text": "too late"})
            await fleet.add("s", request="r", stream=1)
            await fleet.settled()
            assert await redis.ttl(fleet.keys.text("s", "r")) > 0


async def test_a_flooded_control_key_is_obeyed_and_disturbs_nobody(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix):
        await fleet.add("calm", LONG[:200], seed=1)
        await fleet.add("s", LONG, seed=1)
        await fleet.hear("s", until=5)
        key = fleet.keys.control("s")
        for value in ("resume", "???", "PAUSE", "resume") * 500:
            await fleet.redis.set(key, value, ex=60)
        await fleet.control("s", "stop")
        assert (await fleet.hear("s")).end.reason == "stopped"
        assert (await fleet.hear("calm")).end.reason == "completed"


class TestPendingReconciler:
    async def test_a_request_in_our_name_that_we_do_not_know_is_handed_back(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        """What a reply that was lost leaves behind, without the connection being lost."""
        async with serving(redis_url, prefix, heartbeat_ms=100):
            key = fleet.keys.requests(fleet.model)
            with anyio.fail_after(HANG_S):
                while not await fleet.redis.exists(key):
                    await anyio.sleep(0.02)
            async with fleet.redis.pipeline(transaction=True) as pipe:
                pipe.xadd(key, {"session": "s", "text": SHORT, "lead_ms": 0})
                pipe.xreadgroup(GROUP, "w1", {key: ">"})
                await pipe.execute()
            assert (await fleet.hear("s")).end.reason == "completed"
            await fleet.settled()

    async def test_one_that_waits_here_and_is_anothers_now_waits_there_alone(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix, heartbeat_ms=100) as worker:
            await fleet.add("s", LONG, request="r1")
            await fleet.hear("s", until=5)
            entry = await fleet.add("s", SHORT, request="r2", lead_ms=0)
            with anyio.fail_after(HANG_S):
                while f"w:{entry}:{fleet.model}".encode() not in await fleet.redis.hgetall(
                    fleet.keys.lease("s")
                ):
                    await anyio.sleep(0.02)
                # Another worker took this one for dead.
                key = fleet.keys.requests(fleet.model)
                await fleet.redis.xclaim(key, GROUP, "w2", 0, [entry])
                while len(worker.intake.jobs) > 1:
                    await anyio.sleep(0.02)
            await fleet.redis.xclaim(key, GROUP, "orphans", 0, [entry])
            await fleet.redis.set(fleet.keys.wake(fleet.model), "ring", ex=60)
            await fleet.control("s", "stop:r1")
            assert (await fleet.hear("s", 2)).end.reason == "completed"
            await fleet.settled()


async def test_an_engine_that_makes_no_audio_fails_the_turn(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    tone = ToneConfig(latency_ms=1_500)
    async with serving(redis_url, prefix, tone=tone, synthesis_timeout_s=0.3, max_deliveries=2):
        await fleet.add("s", SHORT)
        heard = await fleet.hear("s")
        assert heard.end.reason == "failed"
        assert heard.end.error == "EngineStalledError: no audio for 0.3 s"
        await fleet.settled()
        assert [letter["reason"] for letter in await fleet.dead()] == ["failed"]


async def test_an_engine_that_waits_for_text_is_not_stalled(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix, synthesis_timeout_s=0.3):
        await fleet.add("s", request="r", stream=1)
        await anyio.sleep(0.8)
        await fleet.write("s", "r", text=LONG[:100], flush=1)
        await anyio.sleep(0.8)
        await fleet.write("s", "r", text="Go.", end=1)
        assert (await fleet.hear("s")).end.reason == "completed"
