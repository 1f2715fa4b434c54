"""Workers die, stall and leave in mid-turn: the turn goes on, and its listener hears all of it."""

import signal
import time

import anyio
import pytest

from tests.harness.fleet import HANG_S, Heard, Orchestrator, WorkerProcess, worker_process

pytestmark = pytest.mark.anyio

TEXT = (
    "One two three four five six seven. Eight nine ten eleven twelve. "
    "Thirteen fourteen fifteen sixteen. Seventeen eighteen nineteen twenty."
)
PAUSE_S = 10.0
"""A ceiling for loaded machines; about 2 s on a free one."""


async def undisturbed(fleet: Orchestrator, text: str, **fields: object) -> Heard:
    await fleet.add("calm", text, seed=11, lead_ms=0, **fields)
    return await fleet.hear("calm")


async def owner(fleet: Orchestrator, session: str) -> str:
    return (await fleet.state(session))["worker"]


@pytest.mark.parametrize("until", [15, 60, 150])
async def test_a_killed_worker_is_taken_over_from_the_next_frame(
    fleet: Orchestrator, redis_url: str, until: int
) -> None:
    async with (
        worker_process(fleet, redis_url, "a") as a,
        worker_process(fleet, redis_url, "b") as b,
    ):
        calm = await undisturbed(fleet, TEXT)
        await fleet.add("s", TEXT, seed=11)
        await fleet.hear("s", until=until)
        victim = a if await owner(fleet, "s") == "a" else b
        async with anyio.create_task_group() as tasks:

            async def kill() -> None:
                victim.signal(signal.SIGKILL)

            tasks.start_soon(kill)
            heard = await fleet.hear("s")
        assert heard.end.reason == "completed"
        assert heard.pcm == calm.pcm
        assert [f.text for f in heard.frames] == [f.text for f in calm.frames]
        assert heard.longest_wait < PAUSE_S
        assert not await fleet.worker(victim.name), "gone within three beats"
        await fleet.settled()


@pytest.mark.matrix
async def test_streamed_text_is_taken_over_too(fleet: Orchestrator, redis_url: str) -> None:
    async with (
        worker_process(fleet, redis_url, "a") as a,
        worker_process(fleet, redis_url, "b") as b,
    ):
        calm = await undisturbed(fleet, TEXT)
        await fleet.add("s", request="r", stream=1, seed=11)
        await fleet.write("s", "r", text=TEXT[:90])
        await fleet.hear("s", until=60)
        victim = a if await owner(fleet, "s") == "a" else b
        victim.signal(signal.SIGKILL)
        await fleet.write("s", "r", text=TEXT[90:], end=1)
        heard = await fleet.hear("s")
        assert heard.pcm == calm.pcm


async def test_a_worker_that_stalls_and_comes_back_publishes_nothing_more(
    fleet: Orchestrator, redis_url: str
) -> None:
    async with (
        worker_process(fleet, redis_url, "a") as a,
        worker_process(fleet, redis_url, "b") as b,
    ):
        calm = await undisturbed(fleet, TEXT)
        await fleet.add("s", TEXT, seed=11)
        await fleet.hear("s", until=60)
        zombie = a if await owner(fleet, "s") == "a" else b
        other = b if zombie is a else a
        zombie.signal(signal.SIGSTOP)
        with anyio.fail_after(HANG_S):
            while await owner(fleet, "s") != other.name:
                await anyio.sleep(0.02)
        zombie.signal(signal.SIGCONT)
        heard = await fleet.hear("s")
        assert heard.pcm == calm.pcm
        assert await owner(fleet, "s") == other.name
        await fleet.worker_is(zombie.name, "ready")
        await fleet.settled()


async def test_requests_that_wait_survive_their_holder(fleet: Orchestrator, redis_url: str) -> None:
    async with worker_process(fleet, redis_url, "a") as a:
        await fleet.add("s", TEXT, request="r0", seed=11)
        for index in range(1, 4):
            await fleet.add("s", "Go.", request=f"r{index}", lead_ms=0)
        await fleet.hear("s", until=30)
        a.signal(signal.SIGKILL)
        async with worker_process(fleet, redis_url, "b"):
            turns = await fleet.turns("s", 4)
            assert [turn.end.request for turn in turns] == [f"r{i}" for i in range(4)]
            assert {turn.end.reason for turn in turns} == {"completed"}


async def test_a_paused_turn_is_not_blamed_for_the_deaths_of_its_owners(
    fleet: Orchestrator, redis_url: str
) -> None:
    """Nothing more of it can be heard meanwhile, however well its owners do."""
    async with worker_process(fleet, redis_url, "calm"):
        calm = await undisturbed(fleet, TEXT)
    await fleet.add("s", TEXT, seed=11)
    for index in range(5):
        async with worker_process(fleet, redis_url, f"w{index}") as worker:
            with anyio.fail_after(HANG_S):
                while not (index or await fleet.redis.xlen(fleet.keys.audio("s")) > 40):
                    await anyio.sleep(0.02)
                await fleet.control("s", "pause")
                lease = fleet.keys.lease("s")
                while await fleet.redis.hmget(lease, "owner", "attempts") != [
                    worker.name.encode(),
                    b"0" if index else b"1",
                ]:
                    await anyio.sleep(0.02)
                await anyio.sleep(0.1)
            worker.signal(signal.SIGKILL)
            await worker.exited()
    async with worker_process(fleet, redis_url, "last"):
        await fleet.control("s", "resume")
        heard = await fleet.hear("s")
        assert heard.pcm == calm.pcm
        await fleet.settled()


async def test_a_worker_of_the_same_name_takes_up_what_its_predecessor_left(
    fleet: Orchestrator, redis_url: str
) -> None:
    calm = None
    async with worker_process(fleet, redis_url, "a") as a:
        calm = await undisturbed(fleet, TEXT)
        await fleet.add("s", TEXT, seed=11)
        await fleet.hear("s", until=60)
        a.signal(signal.SIGKILL)
    async with worker_process(fleet, redis_url, "a"):
        assert (await fleet.hear("s")).pcm == calm.pcm


async def test_a_name_that_lives_is_not_given_twice(fleet: Orchestrator, redis_url: str) -> None:
    async with worker_process(fleet, redis_url, "a"):
        twin = WorkerProcess(redis_url, fleet.keys.prefix, "a", config="configs/tone.yaml")
        try:
            assert await twin.exited() != 0
        finally:
            logged = twin.end()
        assert "--name" in logged
        await fleet.add("s", "Still here.", lead_ms=0)
        assert (await fleet.hear("s")).end.reason == "completed"


class TestDrain:
    @pytest.mark.alone
    async def test_nobody_hears_a_drain_that_outlasts_its_time(
        self, fleet: Orchestrator, redis_url: str
    ) -> None:
        async with (
            worker_process(fleet, redis_url, "a", "worker.drain_timeout_s=0.2") as a,
            worker_process(fleet, redis_url, "b", "worker.drain_timeout_s=0.2") as b,
        ):
            calm = await undisturbed(fleet, TEXT)
            await fleet.add("s", TEXT, seed=11)
            await fleet.hear("s", until=40)
            leaving = a if await owner(fleet, "s") == "a" else b
            staying = b if leaving is a else a
            leaving.signal(signal.SIGTERM)
            heard = await fleet.hear("s")
            assert heard.pcm == calm.pcm
            # The lead is 400 ms: a shorter wait is not heard.
            assert heard.longest_wait < 0.4
            assert await owner(fleet, "s") == staying.name
            assert await leaving.exited() == 0
            assert not await fleet.worker(leaving.name)

    async def test_a_turn_that_ends_in_time_is_finished_and_nothing_new_is_taken(
        self, fleet: Orchestrator, redis_url: str
    ) -> None:
        async with worker_process(fleet, redis_url, "a") as a:
            await fleet.add("s", "One two three four five six seven eight.", lead_ms=100)
            await fleet.hear("s", until=5)
            a.signal(signal.SIGTERM)
            await fleet.worker_is("a", "draining")
            await fleet.add("other", "Not here.")
            heard = await fleet.hear("s")
            assert heard.end.reason == "completed"
            assert await a.exited() == 0
            assert not await fleet.redis.exists(fleet.keys.audio("other"))
            async with worker_process(fleet, redis_url, "b"):
                assert (await fleet.hear("other")).end.reason == "completed"

    async def test_waiting_requests_go_to_other_workers_at_once(
        self, fleet: Orchestrator, redis_url: str
    ) -> None:
        async with worker_process(fleet, redis_url, "a") as a:
            await fleet.add("s", TEXT, request="r0", seed=11)
            await fleet.hear("s", until=5)
            await fleet.add("s", "Go.", request="r1", lead_ms=0)
            await fleet.control("s", "pause")  # however long the other one takes to start
            async with worker_process(fleet, redis_url, "b"):
                await fleet.control("s", "resume")
                a.signal(signal.SIGTERM)
                turns = await fleet.turns("s", 2)
                assert [turn.end.reason for turn in turns] == ["completed"] * 2
                assert turns[1].start is not None
                assert turns[1].start.worker == "b"

    async def test_a_second_signal_hands_over_at_once(
        self, fleet: Orchestrator, redis_url: str
    ) -> None:
        async with (
            worker_process(fleet, redis_url, "a", "worker.drain_timeout_s=60") as a,
            worker_process(fleet, redis_url, "b", "worker.drain_timeout_s=60") as b,
        ):
            calm = await undisturbed(fleet, TEXT)
            await fleet.add("s", TEXT, seed=11)
            await fleet.hear("s", until=40)
            leaving = a if await owner(fleet, "s") == "a" else b
            leaving.signal(signal.SIGTERM)
            await fleet.worker_is(leaving.name, "draining")
            leaving.signal(signal.SIGTERM)
            begun = time.monotonic()
            assert await leaving.exited() == 0
            assert time.monotonic() - begun < 30, "half of its time"
            assert (await fleet.hear("s")).pcm == calm.pcm


@pytest.mark.piper
@pytest.mark.timeout(300)  # a ceiling against hangs: two workers load a model
async def test_a_real_voice_is_taken_over_sample_for_sample(
    fleet: Orchestrator, redis_url: str
) -> None:
    pytest.importorskip("piper", reason="needs the piper extra")
    text = (
        "The quick brown fox jumps over the lazy dog. She sells sea shells by the shore. "
        "How much wood would a woodchuck chuck? Nobody has counted it yet."
    )
    fleet.model = "piper-en-joe"
    config = "configs/piper.yaml"
    async with (
        worker_process(fleet, redis_url, "a", config=config) as a,
        worker_process(fleet, redis_url, "b", config=config) as b,
    ):
        calm = await undisturbed(fleet, text)
        await fleet.add("s", text, seed=11)
        await fleet.hear("s", until=170)
        victim = a if await owner(fleet, "s") == "a" else b
        victim.signal(signal.SIGKILL)
        assert (await fleet.hear("s")).pcm == calm.pcm
