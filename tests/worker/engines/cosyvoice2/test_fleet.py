"""The engine in a fleet, through Redis: a directory in the official layout, as users serve it."""

import os
import signal
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import anyio
import pytest

pytest.importorskip("torch", reason="needs the cosyvoice extra (torch)")

from tests.harness.fleet import HANG_S, Heard, Orchestrator, WorkerProcess, worker_process
from tests.worker.engines.cosyvoice2.driving import SENTENCES

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

MODEL = "cosyvoice2-tiny"
TEXT = " ".join(SENTENCES)
READY_S = 120.0
"""An engine's process imports torch first, on a machine that does other things too."""


@pytest.fixture
def tiny(fleet: Orchestrator) -> Orchestrator:
    fleet.model = MODEL
    return fleet


def serving(
    tiny: Orchestrator, redis_url: str, pack: Path, name: str, *flags: str
) -> AbstractAsyncContextManager[WorkerProcess]:
    """``voicefleet worker --config configs/cosyvoice2.yaml`` with a tiny pack."""
    return worker_process(
        tiny,
        redis_url,
        name,
        f"model_manager.voicepacks_dir={pack.parent.parent}",
        f"model_manager.default_model_id={MODEL}",
        f"worker.models={MODEL}",
        "engine.cosyvoice2.threads=1",
        "engine.cosyvoice2.slots=3",
        "engine.cosyvoice2.synthesis_timeout_s=30",  # a busy machine is no hung engine
        *flags,
        config="configs/cosyvoice2.yaml",
        ready_s=READY_S,
    )


async def undisturbed(tiny: Orchestrator, **fields: object) -> Heard:
    await tiny.add("calm", fields.pop("text", TEXT), seed=11, lead_ms=0, **fields)
    return await tiny.hear("calm", timeout_s=2 * HANG_S)


async def owner(tiny: Orchestrator, session: str) -> str:
    return (await tiny.state(session))["worker"]


def engine_of(worker: WorkerProcess) -> int:
    """The process in which the worker's engine runs."""
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    for pid in map(int, children):
        if b"hosting.child" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise AssertionError("the worker has no engine process")


async def test_a_session_speaks(tiny: Orchestrator, redis_url: str, tiny_pack: Path) -> None:
    async with serving(tiny, redis_url, tiny_pack, "a"):
        heard = await undisturbed(tiny)
        assert heard.end.reason == "completed"
        assert heard.samples.any()
        texts = [frame.text for frame in heard.frames if frame.text]
        assert texts == list(SENTENCES)
        record = await tiny.worker("a")
        assert record["device"] == "cpu"
        assert record["slots_total"] == "3"
        assert float(record["session_mb"]) > 0
        model = await tiny.redis.hgetall(tiny.keys.model(MODEL))
        assert model[b"synthetic"] == b"1", "random weights are marked as such"
        assert model[b"modes"] == b"zero_shot,cross_lingual,instruct,sft"
        for mode, more in (("instruct", {"instruct": "Softly."}), ("sft", {"voice": "default"})):
            await tiny.add(mode, SENTENCES[0], mode=mode, lead_ms=0, **more)
            assert (await tiny.hear(mode)).end.reason == "completed"
        await tiny.add("bad", SENTENCES[0], mode="sft")
        end = (await tiny.hear("bad")).end
        assert end.reason == "rejected"
        assert "zero_shot, cross_lingual, instruct" in end.error


async def test_sessions_side_by_side_sound_as_if_alone(
    tiny: Orchestrator, redis_url: str, tiny_pack: Path
) -> None:
    async with serving(tiny, redis_url, tiny_pack, "a"):
        calm = await undisturbed(tiny)
        sessions = [f"s{n}" for n in range(6)]
        for session in sessions:
            await tiny.add(session, TEXT, seed=11, lead_ms=0)
        for session in sessions:
            assert (await tiny.hear(session, timeout_s=4 * HANG_S)).pcm == calm.pcm


@pytest.mark.parametrize("until", [5, 220])
async def test_a_killed_worker_is_taken_over_with_the_same_samples(
    tiny: Orchestrator, redis_url: str, tiny_pack: Path, until: int
) -> None:
    async with (
        serving(tiny, redis_url, tiny_pack, "a") as a,
        serving(tiny, redis_url, tiny_pack, "b") as b,
    ):
        calm = await undisturbed(tiny)
        await tiny.add("s", TEXT, seed=11)
        await tiny.hear("s", until=until, timeout_s=2 * HANG_S)
        victim = a if await owner(tiny, "s") == "a" else b
        engine = engine_of(victim)
        victim.signal(signal.SIGKILL)
        heard = await tiny.hear("s", timeout_s=2 * HANG_S)
        assert heard.end.reason == "completed"
        assert heard.pcm == calm.pcm
        assert [f.text for f in heard.frames] == [f.text for f in calm.frames]
        with anyio.fail_after(HANG_S):
            while Path(f"/proc/{engine}/fd").exists():
                await anyio.sleep(0.05)


async def test_a_killed_engine_is_replaced_and_the_turn_goes_on(
    tiny: Orchestrator, redis_url: str, tiny_pack: Path
) -> None:
    """The worker itself lives: it says what happened, loads anew, and speaks on."""
    async with serving(tiny, redis_url, tiny_pack, "a") as a:
        calm = await undisturbed(tiny)
        await tiny.add("s", TEXT, seed=11)
        await tiny.hear("s", until=100, timeout_s=2 * HANG_S)
        first = engine_of(a)
        os.kill(first, signal.SIGKILL)
        heard = await tiny.hear("s", timeout_s=READY_S)
        assert heard.pcm == calm.pcm
        assert engine_of(a) != first


async def test_text_that_is_being_written_is_taken_over(
    tiny: Orchestrator, redis_url: str, tiny_pack: Path
) -> None:
    streaming = "engine.cosyvoice2.text_streaming=true"
    async with (
        serving(tiny, redis_url, tiny_pack, "a", streaming) as a,
        serving(tiny, redis_url, tiny_pack, "b", streaming) as b,
    ):
        await tiny.add("calm", request="r", stream=1, seed=11, lead_ms=0)
        await tiny.write("calm", "r", text=TEXT, end=1)
        calm = await tiny.hear("calm", timeout_s=2 * HANG_S)
        await tiny.add("s", request="r", stream=1, seed=11)
        await tiny.write("s", "r", text=TEXT[:100])
        await tiny.hear("s", until=60, timeout_s=2 * HANG_S)
        victim = a if await owner(tiny, "s") == "a" else b
        victim.signal(signal.SIGKILL)
        await tiny.write("s", "r", text=TEXT[100:], end=1)
        heard = await tiny.hear("s", timeout_s=2 * HANG_S)
        assert heard.pcm == calm.pcm


async def test_a_stop_frees_the_slot(tiny: Orchestrator, redis_url: str, tiny_pack: Path) -> None:
    async with serving(tiny, redis_url, tiny_pack, "a", "worker.slots=1"):
        await tiny.add("long", TEXT * 3)
        await tiny.hear("long", until=20, timeout_s=2 * HANG_S)
        await tiny.control("long", "stop")
        assert (await tiny.hear("long")).end.reason == "stopped"
        await tiny.add("next", SENTENCES[0], lead_ms=0)
        assert (await tiny.hear("next", timeout_s=2 * HANG_S)).end.reason == "completed"
