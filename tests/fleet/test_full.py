"""A fleet without a free slot: what a session wishes is obeyed all the same."""

import signal
import time

import anyio
import pytest
from redis.asyncio import Redis

from tests.harness.fleet import HANG_S, Orchestrator, serving, worker_process

pytestmark = pytest.mark.anyio

LONG = "One two three four five six seven eight nine ten. " * 40
SHORT = "Go."
GENEROUS_S = 20.0
"""Nothing here waits for a slot, which would take the length of ``LONG``: 60 s."""


async def fill(fleet: Orchestrator, slots: int, waiting: int) -> None:
    """Take all slots for long, and let other sessions wait for one."""
    for index in range(slots):
        await fleet.add(f"busy{index}", LONG, request="long")
        await fleet.hear(f"busy{index}", until=5)
    for index in range(waiting):
        await fleet.add(f"waits{index}", LONG)
    with anyio.fail_after(HANG_S):
        while await fleet.parked() < waiting:
            await anyio.sleep(0.02)


async def stop_all(fleet: Orchestrator, *sessions: str) -> None:
    for session in sessions:
        await fleet.control(session, "stop")


class TestBargeIn:
    async def test_takes_the_slot_of_the_turn_it_interrupts(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix, slots=2):
            await fill(fleet, 2, waiting=30)
            began = time.monotonic()
            await fleet.add("busy0", SHORT, request="new", interrupt=1)
            old = await fleet.hear("busy0", timeout_s=GENEROUS_S)
            assert (old.end.reason, old.end.request) == ("interrupted", "long")
            new = await fleet.hear("busy0", turn=2, timeout_s=GENEROUS_S)
            assert (new.end.reason, new.end.request) == ("completed", "new")
            assert time.monotonic() - began < GENEROUS_S
            assert await fleet.parked() >= 29, "it took no other's turn"
            for index in range(30):
                await fleet.control(f"waits{index}", "stop")
            await stop_all(fleet, "busy1")
            await fleet.settled()

    async def test_of_a_waiting_turn_answers_it_unspoken(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix, slots=1):
            await fill(fleet, 1, waiting=1)
            await fleet.add("waits0", SHORT, request="new", interrupt=1)
            old = await fleet.hear("waits0", timeout_s=GENEROUS_S)
            assert (old.end.reason, old.end.frames) == ("interrupted", 0)
            await fleet.control("busy0", "stop")
            assert (await fleet.hear("waits0", turn=2)).end.reason == "completed"
            await fleet.settled()

    async def test_passes_over_the_turns_between(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix, slots=1):
            await fill(fleet, 1, waiting=5)
            for name in ("a", "b", "c"):
                await fleet.add("busy0", LONG, request=name)
            await fleet.add("busy0", SHORT, request="new", interrupt=1)
            turns = [await fleet.hear("busy0", turn, timeout_s=GENEROUS_S) for turn in range(1, 6)]
            assert [turn.end.request for turn in turns] == ["long", "a", "b", "c", "new"]
            reasons = [turn.end.reason for turn in turns]
            assert reasons == ["interrupted"] * 4 + ["completed"]
            assert [turn.end.frames for turn in turns[1:4]] == [0, 0, 0]
            for index in range(5):
                await fleet.control(f"waits{index}", "stop")
            await fleet.settled()

    async def test_among_workers_that_are_all_full(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with (
            serving(redis_url, prefix, slots=4, name="a"),
            serving(redis_url, prefix, slots=4, name="b"),
        ):
            await fill(fleet, 8, waiting=30)
            for index in range(8):
                await fleet.add(f"busy{index}", SHORT, request="new", interrupt=1)
            for index in range(8):
                old, new = [
                    await fleet.hear(f"busy{index}", turn, timeout_s=GENEROUS_S) for turn in (1, 2)
                ]
                assert (old.end.reason, new.end.reason) == ("interrupted", "completed")
            for index in range(30):
                await fleet.control(f"waits{index}", "stop")
            await fleet.settled()


class TestAnswersWithoutASlot:
    @pytest.mark.parametrize("wish", ["stop", "stop:r1", "stop:r2"])
    async def test_stop_of_a_turn_that_waits(
        self, fleet: Orchestrator, redis_url: str, prefix: str, wish: str
    ) -> None:
        async with serving(redis_url, prefix, slots=1):
            await fill(fleet, 1, waiting=10)
            await fleet.add("s", LONG, request="r1")
            await fleet.add("s", SHORT, request="r2", lead_ms=0)
            with anyio.fail_after(HANG_S):
                while await fleet.parked() < 12:
                    await anyio.sleep(0.02)
            await fleet.redis.set(fleet.keys.control("s"), wish, px=1500)
            first = await fleet.hear("s", timeout_s=GENEROUS_S)
            assert (first.end.reason, first.end.frames) == ("stopped", 0)
            await stop_all(fleet, "busy0", *(f"waits{index}" for index in range(10)))
            second = await fleet.hear("s", turn=2)
            assert second.end.reason == ("completed" if wish == "stop:r1" else "stopped")
            await fleet.settled()

    async def test_stop_that_was_set_before_the_request_came(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix, slots=1):
            await fill(fleet, 1, waiting=1)
            await fleet.control("s", "stop")
            await fleet.add("s", LONG)
            heard = await fleet.hear("s", timeout_s=GENEROUS_S)
            assert (heard.end.reason, heard.end.frames) == ("stopped", 0)
            await stop_all(fleet, "busy0", "waits0")
            await fleet.settled()

    @pytest.mark.parametrize(
        ("field", "value"), [("speed", "9"), ("voice", "nobody"), ("mode", "sft")]
    )
    async def test_what_cannot_be_spoken(
        self, fleet: Orchestrator, redis_url: str, prefix: str, field: str, value: str
    ) -> None:
        async with serving(redis_url, prefix, slots=1):
            await fill(fleet, 1, waiting=1)
            await fleet.add("s", SHORT, **{field: value})
            heard = await fleet.hear("s", timeout_s=GENEROUS_S)
            assert heard.end.reason == "rejected"
            assert (heard.end.error or "").startswith(f"{field}: ")
            await stop_all(fleet, "busy0", "waits0")
            await fleet.settled()
            (letter,) = await fleet.dead()
            assert letter["session"] == "s"

    async def test_too_many_in_one_session(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix, slots=1, max_waiting_turns=3):
            await fill(fleet, 1, waiting=0)
            for index in range(5):
                await fleet.add("busy0", SHORT, request=f"r{index}", lead_ms=0)
            with anyio.fail_after(HANG_S):
                while len(await fleet.dead()) < 2:
                    await anyio.sleep(0.02)
            assert {letter["request"] for letter in await fleet.dead()} == {"r3", "r4"}
            await fleet.control("busy0", "stop:long")
            turns = await fleet.turns("busy0", 6)
            reasons = [turn.end.reason for turn in turns]
            assert reasons == ["stopped", *["completed"] * 3, *["rejected"] * 2]
            await fleet.settled()

    async def test_stop_of_a_turn_whose_worker_died(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix, slots=1, name="a"):
            await fill(fleet, 1, waiting=0)
            async with worker_process(fleet, redis_url, "b", "worker.slots=1") as b:
                await fleet.add("s", LONG, request="r")
                heard = await fleet.hear("s", until=5)
                b.signal(signal.SIGKILL)
                await b.exited()
            await fleet.control("s", "stop:r")
            rest = await fleet.hear("s", timeout_s=HANG_S)
            assert rest.end.reason == "stopped"
            assert rest.end.frames >= heard.frames[-1].id.n
            await stop_all(fleet, "busy0")
            await fleet.settled()

    async def test_another_keeps_the_backlog_when_its_keeper_dies(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with worker_process(fleet, redis_url, "a", "worker.slots=1") as a:
            await fill(fleet, 1, waiting=3)
            async with serving(redis_url, prefix, slots=1, name="b"):
                with anyio.fail_after(HANG_S):
                    while (await fleet.worker("b")).get("sessions") != "1":
                        await anyio.sleep(0.05)
                a.signal(signal.SIGKILL)
                await fleet.control("waits2", "stop")
                heard = await fleet.hear("waits2", timeout_s=HANG_S)
                assert (heard.end.reason, heard.end.frames) == ("stopped", 0)
                await stop_all(fleet, "busy0", "waits0", "waits1")
                await fleet.settled()


class TestConversation:
    async def test_goes_on_before_others_begin(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix, slots=1):
            await fleet.add("talks", SHORT, lead_ms=0)
            await fleet.hear("talks")
            await fill(fleet, 1, waiting=0)
            for index in range(10):
                await fleet.add(f"new{index}", SHORT, lead_ms=0)
            await fleet.add("talks", SHORT, lead_ms=0)
            with anyio.fail_after(HANG_S):
                while await fleet.parked() < 11:
                    await anyio.sleep(0.02)
            await fleet.control("busy0", "stop")
            assert (await fleet.hear("talks", turn=2)).end.reason == "completed"
            spoken = [await fleet.redis.exists(fleet.keys.audio(f"new{i}")) for i in range(10)]
            assert sum(spoken) <= 2, "it came first"
            for index in range(10):
                assert (await fleet.hear(f"new{index}")).end.reason == "completed"
            await fleet.settled()

    async def test_takes_nothing_from_other_tenants(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix, slots=1):
            for index in range(10):
                await fleet.add(f"greedy:{index}", SHORT, lead_ms=0)
                await fleet.hear(f"greedy:{index}")
            await fill(fleet, 1, waiting=0)
            for index in range(10):
                await fleet.add(f"greedy:{index}", SHORT, lead_ms=0)
            await fleet.add("modest:0", SHORT, lead_ms=0)
            with anyio.fail_after(HANG_S):
                while await fleet.parked() < 11:
                    await anyio.sleep(0.02)
            await fleet.control("busy0", "stop")
            assert (await fleet.hear("modest:0")).end.reason == "completed"
            lengths = [await fleet.redis.xlen(fleet.keys.audio(f"greedy:{i}")) for i in range(10)]
            assert sum(length > min(lengths) for length in lengths) <= 3
            await fleet.settled()


async def test_two_workers_reject_in_order(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with (
        serving(redis_url, prefix, name="a", max_waiting_turns=20),
        serving(redis_url, prefix, name="b", max_waiting_turns=20),
    ):
        async with fleet.redis.pipeline() as pipe:
            for index in range(100):
                fields = {"session": "s", "request": f"n{index}", "text": SHORT, "lead_ms": "0"}
                pipe.xadd(fleet.keys.requests(fleet.model), fields)
            await pipe.execute()
        turns = await fleet.turns("s", 100)
        assert [turn.end.request for turn in turns] == [f"n{index}" for index in range(100)]
        reasons = [turn.end.reason for turn in turns]
        assert set(reasons) == {"completed", "rejected"}
        assert reasons[:21] == ["completed"] * 21, "those who may wait are not refused"
        await fleet.settled()


class TestForgotten:
    async def test_a_stalled_worker_does_not_speak_again_what_others_answered(
        self, fleet: Orchestrator, redis_url: str, prefix: str, redis: Redis
    ) -> None:
        async with (
            serving(redis_url, prefix, name="b", slots=8),
            worker_process(fleet, redis_url, "a", "worker.slots=8") as a,
        ):
            held: list[str] = []
            while not held:  # until some of them are in the hands of a
                names = [f"s{time.monotonic_ns()}" for _ in range(4)]
                for name in names:
                    await fleet.add(name, LONG[:200], lead_ms=200)
                for name in names:
                    await fleet.hear(name, until=3)
                held = [n for n in names if (await fleet.state(n))["worker"] == "a"]
            a.signal(signal.SIGSTOP)
            for name in held:
                assert (await fleet.hear(name)).end.reason == "completed"
            await fleet.settled()
            async for key in redis.scan_iter(f"{prefix}:*"):
                await redis.delete(key)
            a.signal(signal.SIGCONT)
            await fleet.worker_is("a", "ready")
            await anyio.sleep(2.0)
            for name in held:
                assert not await redis.exists(fleet.keys.audio(name)), "it was spoken once"

    async def test_a_session_is_not_held_up_by_each_forgotten_turn(
        self, fleet: Orchestrator, redis_url: str, prefix: str, redis: Redis
    ) -> None:
        keys = fleet.keys
        lease = {"active": "0", "epoch": "1", "turn": "0"}
        lease |= {f"w:{index}-0:{fleet.model}": f".gone{index}" for index in range(1, 7)}
        await redis.hset(keys.lease("s"), mapping=lease)
        await redis.expire(keys.lease("s"), 60)
        async with serving(redis_url, prefix):
            began = time.monotonic()
            await fleet.add("s", SHORT, lead_ms=0)
            assert (await fleet.hear("s", timeout_s=40)).end.reason == "completed"
            assert time.monotonic() - began < 15, "one wait for all of them, of 5 s"
            await fleet.settled()
