"""The Python client with a real fleet: what a voice agent written with it hears."""

import signal
from collections.abc import AsyncGenerator

import anyio
import pytest
from redis.asyncio import Redis

from tests.harness.fleet import Orchestrator, serving, worker_process
from voicefleet import Frame, TurnFailed, TurnRejected, UnknownModel, VoiceFleet

pytestmark = pytest.mark.anyio

MODEL = "tone-test"
TEXT = "One two three four five six. Seven eight nine ten eleven twelve. Thirteen fourteen."


@pytest.fixture
async def client(redis_url: str, prefix: str) -> AsyncGenerator[VoiceFleet]:
    async with VoiceFleet(redis_url, prefix=prefix) as client:
        yield client


async def test_a_turn_is_frames_and_an_end(client: VoiceFleet, redis_url: str, prefix: str) -> None:
    async with serving(redis_url, prefix):
        turn = client.speak(TEXT, model=MODEL, lead_ms=0)
        frames = [frame async for frame in turn]
        assert turn.end is not None
        assert turn.end.frames == len(frames)
        assert "".join(f.text or "" for f in frames).startswith("One two")


async def test_text_is_spoken_as_it_is_written(
    client: VoiceFleet, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix):
        session = client.session("s1")
        async with session.stream(model=MODEL, lead_ms=0) as turn:
            heard: list[Frame] = []

            async def listen() -> None:
                heard.extend([frame async for frame in turn])

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listen)
                for word in TEXT.split():
                    await turn.write(word + " ")
                await turn.end_text()
        assert next(f.text for f in heard if f.text) == "One two three four five six."


async def test_barging_in_stopping_and_going_on(
    client: VoiceFleet, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix):
        session = client.session("s1")
        first = session.speak(TEXT, model=MODEL)
        async for frame in first:
            if frame.id.n == 10:
                break
        second = session.speak("Listen to me!", model=MODEL, interrupt=True, lead_ms=0)
        assert (await second).reason == "completed"
        third = session.speak(TEXT, model=MODEL)
        async for frame in third:
            if frame.id.n == 10:
                await third.stop()
        assert (await third).reason == "stopped"
        await session.stop()
        assert (await session.speak("Not this.", model=MODEL)).reason == "stopped"
        await session.resume()
        assert (await session.speak("But this.", model=MODEL, lead_ms=0)).reason == "completed"


async def test_errors_are_typed(client: VoiceFleet, redis_url: str, prefix: str) -> None:
    async with serving(redis_url, prefix, text_timeout_s=0.3):
        with pytest.raises(UnknownModel, match="tone-test"):
            await client.speak("Hello.", model="tone-nope")
        with pytest.raises(TurnRejected, match="voice"):
            await client.speak("Hello.", model=MODEL, voice="nobody")
        with pytest.raises(TurnFailed, match="text_timeout"):
            async with client.session("s2").stream(model=MODEL) as turn:
                await turn.wait()


async def test_a_worker_that_dies_is_a_pause_in_the_loop(
    client: VoiceFleet, redis: Redis, redis_url: str, prefix: str
) -> None:
    fleet = Orchestrator(redis, prefix)
    async with (
        worker_process(fleet, redis_url, "a") as a,
        worker_process(fleet, redis_url, "b") as b,
    ):
        calm = [f.pcm async for f in client.speak(TEXT, model=MODEL, seed=5, lead_ms=0)]
        pcm: list[bytes] = []
        turn = client.speak(TEXT, model=MODEL, seed=5)
        async for frame in turn:
            pcm.append(frame.pcm)
            if frame.id.n == 60:
                assert turn.start is not None
                {"a": a, "b": b}[turn.start.worker].signal(signal.SIGKILL)
        assert pcm == calm


async def test_discovery(client: VoiceFleet, redis_url: str, prefix: str) -> None:
    async with serving(redis_url, prefix, slots=3):
        (worker,) = await client.workers()
        assert (worker.name, worker.record.state, worker.record.slots_total) == ("w1", "ready", 3)
        models = await client.models()
        assert models[MODEL].synthetic
        assert models[MODEL].voices == ("tone-a", "tone-b")
        capacity = await client.capacity(MODEL)
        assert capacity.slots_free == 3
