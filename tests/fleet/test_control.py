"""Pause, resume and stop: the control key is a level that holds whoever looks, and whenever."""

import time

import anyio
import pytest

from tests.harness.fleet import HANG_S, Orchestrator, serving
from voicefleet.schemas.audio import Frame

pytestmark = pytest.mark.anyio

TEXT = "One two three four five six. Seven eight nine ten eleven twelve. " * 3


async def last_number(fleet: Orchestrator, session: str) -> int:
    newest = await fleet.redis.xrevrange(fleet.keys.audio(session), count=1)
    return int(newest[0][0].split(b"-")[1])


@pytest.mark.matrix
async def test_stop_ends_the_turn_and_frees_the_slot(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix, slots=1, heartbeat_ms=50, dead_after_ms=500):
        await fleet.add("s", TEXT)
        await fleet.hear("s", until=10)
        await fleet.control("s", "stop")
        heard = await fleet.hear("s")
        assert heard.end.reason == "stopped"
        await fleet.add("other", "Go.", lead_ms=0)
        assert (await fleet.hear("other")).end.reason == "completed"
        await fleet.settled()


@pytest.mark.parametrize("value", ["STOP", "Stop", " stop "])
async def test_values_are_case_insensitive(
    fleet: Orchestrator, redis_url: str, prefix: str, value: str
) -> None:
    async with serving(redis_url, prefix):
        await fleet.add("s", TEXT)
        await fleet.hear("s", until=3)
        await fleet.control("s", value)
        assert (await fleet.hear("s")).end.reason == "stopped"


async def test_stop_set_before_the_request_answers_it_unspoken(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix):
        await fleet.control("s", "stop")
        await fleet.add("s", TEXT)
        await fleet.add("s", TEXT)
        for turn in await fleet.turns("s", 2):
            assert (turn.start, turn.end.reason) == (None, "stopped")
        await fleet.redis.delete(fleet.keys.control("s"))
        await fleet.add("s", "Go.", lead_ms=0)
        assert (await fleet.hear("s", 3)).end.reason == "completed"


@pytest.mark.matrix
async def test_pause_holds_every_frame_and_resume_goes_on_with_the_next(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix):
        await fleet.add("calm", TEXT, seed=3, lead_ms=0)
        await fleet.add("s", TEXT, seed=3)
        await fleet.hear("s", until=30)
        await fleet.control("s", "pause")
        with anyio.fail_after(HANG_S):
            while (await fleet.state("s"))["state"] != "paused":
                await anyio.sleep(0.005)
        held = await last_number(fleet, "s")
        await anyio.sleep(0.5)
        assert await last_number(fleet, "s") == held
        await fleet.control("s", "resume")
        heard = await fleet.hear("s")
        assert heard.end.reason == "completed"
        assert heard.pcm == (await fleet.hear("calm")).pcm


async def test_pause_set_before_the_request_holds_its_first_frame(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix):
        await fleet.control("s", "pause")
        await fleet.add("s", "Go on then.", lead_ms=0)
        await fleet.hear("s", until=0)
        await anyio.sleep(0.3)
        assert await last_number(fleet, "s") == 0
        await fleet.redis.delete(fleet.keys.control("s"))
        assert (await fleet.hear("s")).end.reason == "completed"


async def test_a_paused_turn_can_be_stopped(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix):
        await fleet.add("s", TEXT)
        await fleet.hear("s", until=3)
        await fleet.control("s", "pause")
        await anyio.sleep(0.1)
        await fleet.control("s", "stop")
        assert (await fleet.hear("s")).end.reason == "stopped"


async def test_a_pause_that_lasts_too_long_stops_the_turn(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix, pause_timeout_s=0.3):
        await fleet.add("s", TEXT)
        await fleet.hear("s", until=3)
        await fleet.control("s", "pause")
        heard = await fleet.hear("s")
        assert (heard.end.reason, heard.end.error) == ("stopped", "pause_timeout")


async def test_an_unknown_value_leaves_things_as_they_are(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix):
        await fleet.add("s", "Nobody says that.", lead_ms=100)
        await fleet.hear("s", until=1)
        await fleet.control("s", "halt!")
        assert (await fleet.hear("s")).end.reason == "completed"


class TestStopThrough:
    """``stop:<request>`` ends that turn and those of the session added before it."""

    async def test_names_the_turn_that_is_spoken(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix):
            await fleet.add("s", TEXT, request="r1")
            await fleet.hear("s", until=3)
            await fleet.add("s", "Go.", request="r2", lead_ms=0)
            await fleet.control("s", "stop:r1")
            turns = await fleet.turns("s", 2)
            assert [turn.end.reason for turn in turns] == ["stopped", "completed"]

    async def test_names_one_that_waits(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix):
            for index in range(1, 5):
                await fleet.add("s", TEXT, request=f"r{index}", lead_ms=400 if index < 4 else 0)
            await fleet.hear("s", until=3)
            await fleet.control("s", "stop:r3")
            turns = await fleet.turns("s", 4)
            assert [t.end.reason for t in turns] == ["stopped"] * 3 + ["completed"]

    async def test_names_one_that_no_worker_has_taken_yet(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix, slots=1):
            await fleet.add("s", TEXT, request="r1")
            await fleet.hear("s", until=3)
            await fleet.add("s", TEXT, request="r2")  # no slot: it stays in the queue
            await fleet.control("s", "stop:r2")
            turns = await fleet.turns("s", 2)
            assert [turn.end.reason for turn in turns] == ["stopped", "stopped"]

    async def test_of_a_turn_long_past_concerns_nobody(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix):
            await fleet.add("s", "Go.", request="r1", lead_ms=0)
            await fleet.hear("s")
            await fleet.control("s", "stop:r1")
            await fleet.add("s", "Go again.", request="r2", lead_ms=0)
            assert (await fleet.hear("s", 2)).end.reason == "completed"

    async def test_the_request_may_come_after_the_stop(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix):
            await fleet.control("s", "stop:r2")
            await fleet.add("s", TEXT, request="r1")
            await fleet.hear("s", until=3)
            await fleet.add("s", TEXT, request="r2")
            await fleet.add("s", "Go.", request="r3", lead_ms=0)
            turns = await fleet.turns("s", 3)
            assert [t.end.reason for t in turns] == ["stopped", "stopped", "completed"]


async def test_the_last_frame_comes_soon_after_a_stop(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix):
        await fleet.add("s", TEXT)
        async with anyio.create_task_group() as tasks:
            stopped: list[float] = []

            async def stop() -> None:
                await fleet.hear("s", until=40)
                stopped.append(time.monotonic())
                await fleet.control("s", "stop")

            tasks.start_soon(stop)
            heard = await fleet.hear("s")
        late = [
            arrival - stopped[0]
            for arrival, entry in zip(heard.arrivals, heard.entries, strict=True)
            if isinstance(entry, Frame)
        ]
        assert late[-1] < 1.0  # against hangs; bench/ measures it
