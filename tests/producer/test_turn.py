"""Turns of the client against a real server; the test plays the worker."""

import gc
import time
import wave
from collections.abc import AsyncGenerator
from contextlib import aclosing
from io import BytesIO

import anyio
import pytest
from redis.asyncio import Redis

from tests.producer.fake_worker import MODEL, FakeWorker, pcm
from voicefleet import (
    InvalidRequest,
    StreamGap,
    TurnEnded,
    TurnExpired,
    TurnFailed,
    TurnRejected,
    UnknownModel,
    VoiceFleet,
    WavWriter,
)
from voicefleet.schemas import Frame

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


async def test_a_turn_yields_its_frames(fleet: VoiceFleet, worker: FakeWorker) -> None:
    turn = fleet.session("s1").speak("Hello.", model=MODEL, voice="b", seed=7)
    await turn.send()
    asked = await worker.take()
    assert (asked.session, asked.text, asked.voice, asked.seed) == ("s1", "Hello.", "b", 7)
    assert asked.request == turn.request
    await worker.speak(asked, 1, 30)
    frames = [frame async for frame in turn]
    assert [f.pcm for f in frames] == [pcm(1, n) for n in range(1, 31)]
    assert turn.start is not None and turn.start.sample_rate == 48000
    assert turn.end is not None and turn.end.frames == 30
    assert [f async for f in turn] == []
    assert await turn == turn.end


async def test_turns_of_a_session_find_their_own_frames(
    fleet: VoiceFleet, worker: FakeWorker
) -> None:
    session = fleet.session("s1", model=MODEL)
    first, second = session.speak("one"), session.speak("two")
    await first.send()
    await second.send()
    for turn in (1, 2):
        await worker.speak(await worker.take(), turn, 400)  # more than a listener's backlog
    for handle, turn in ((second, 2), (first, 1)):
        assert [f.pcm async for f in handle] == [pcm(turn, n) for n in range(1, 401)]


@pytest.mark.parametrize(
    ("reason", "error"),
    [("rejected", TurnRejected), ("failed", TurnFailed), ("expired", TurnExpired)],
)
async def test_an_end_that_is_an_error(
    fleet: VoiceFleet, worker: FakeWorker, reason: str, error: type[Exception]
) -> None:
    turn = await fleet.session("s1").speak("x", model=MODEL).send()
    asked = await worker.take()
    await worker.end("s1", 1, asked.name, 0, reason, error="the reason why")
    with pytest.raises(error, match="the reason why"):
        await turn
    with pytest.raises(error):
        await turn


@pytest.mark.parametrize("reason", ["stopped", "interrupted"])
async def test_a_stopped_turn_ends_quietly(
    fleet: VoiceFleet, worker: FakeWorker, reason: str
) -> None:
    turn = await fleet.session("s1").speak("x", model=MODEL).send()
    asked = await worker.take()
    await worker.start("s1", 1, asked.name)
    await worker.frames("s1", 1, 1, 3)
    await worker.end("s1", 1, asked.name, 3, reason)
    assert len([f async for f in turn]) == 3
    assert turn.end is not None and turn.end.reason == reason


async def test_an_unknown_model_names_the_served_ones(
    fleet: VoiceFleet, worker: FakeWorker, redis: Redis
) -> None:
    with pytest.raises(UnknownModel, match="served now: tone-test") as caught:
        await fleet.speak("x", model="nope")
    assert caught.value.served == (MODEL,)
    assert not await redis.exists(worker.keys.requests("nope"))
    await fleet.speak("x", model="later", wait_for_worker=True).send()
    await redis.delete(worker.keys.requests("later"))


async def test_a_bad_request_is_not_sent(fleet: VoiceFleet) -> None:
    session = fleet.session("s1", model=MODEL)
    with pytest.raises(InvalidRequest, match="speed"):
        session.speak("x", speed=9)
    with pytest.raises(InvalidRequest, match="text"):
        session.speak("")
    with pytest.raises(InvalidRequest, match="session"):
        fleet.session("a b").speak("x", model=MODEL)
    with pytest.raises(ValueError, match="name a model"):
        fleet.session("s1").speak("x")


async def test_a_named_turn_is_found_in_what_was_spoken(
    fleet: VoiceFleet, worker: FakeWorker
) -> None:
    session = fleet.session("s1", model=MODEL)
    await session.speak("x", request="r1").send()
    await worker.speak(await worker.take(), 1, 5)
    again = await session.speak("x", request="r1").send()
    await worker.take()
    assert len([f async for f in again]) == 5


async def test_a_named_turn_is_found_beyond_what_is_trimmed_meanwhile(
    fleet: VoiceFleet, worker: FakeWorker
) -> None:
    """The oldest entries, which are others', may go while they are being passed over."""
    turn = fleet.session("s1", model=MODEL).speak("x", request="r3")
    await worker.start("s1", 1, "r1")
    await worker.frames("s1", 1, 1, 3)
    await worker.frames("s1", 1, 30, 31)
    await worker.frames("s1", 2, 7, 9)
    await worker.end("s1", 2, "r2", 9)
    await turn.send()
    await worker.speak(await worker.take(), 3, 5)
    assert [frame.id.n async for frame in turn] == [1, 2, 3, 4, 5]


async def test_a_named_turn_whose_beginning_was_trimmed_is_an_error(
    fleet: VoiceFleet, worker: FakeWorker
) -> None:
    turn = fleet.session("s1", model=MODEL).speak("x", request="r2")
    await worker.frames("s1", 1, 1, 3)
    await worker.frames("s1", 2, 7, 9)
    await worker.end("s1", 2, "r2", 9)
    await turn.send()
    with pytest.raises(StreamGap):
        await anext(turn)
    await worker.take()


async def test_frames_that_were_trimmed_are_an_error(
    fleet: VoiceFleet, worker: FakeWorker, redis: Redis
) -> None:
    turn = await fleet.session("s1").speak("x", model=MODEL).send()
    asked = await worker.take()
    await worker.start("s1", 1, asked.name)
    await worker.frames("s1", 1, 1, 3)
    taken = [await anext(turn) for _ in range(3)]
    assert taken[-1].id.n == 3
    await worker.frames("s1", 1, 5, 6)
    with pytest.raises(StreamGap, match="between 1-3 and 1-5"):
        await anext(turn)


async def test_text_in_pieces(fleet: VoiceFleet, worker: FakeWorker, redis: Redis) -> None:
    async with fleet.session("s1").stream(model=MODEL) as turn:
        await turn.write("Hello ")
        await turn.write("x" * 10_001)
        await turn.flush()
    key = worker.keys.text("s1", turn.request)
    assert await redis.xrange(key) == [
        (b"1-0", {b"text": b"Hello "}),
        (b"2-0", {b"text": b"x" * 10_000}),
        (b"3-0", {b"text": b"x"}),
        (b"4-0", {b"flush": b"1"}),
        (b"5-0", {b"end": b"1"}),
    ]
    assert 3500 < await redis.ttl(key) <= 3600
    asked = await worker.take()
    assert asked.stream and asked.text is None
    with pytest.raises(anyio.ClosedResourceError):
        await turn.write("more")
    await worker.speak(asked, 1, 2)
    assert len([f async for f in turn]) == 2


async def test_a_text_piece_whose_reply_was_lost_stands_once(
    fleet: VoiceFleet, worker: FakeWorker, redis: Redis
) -> None:
    async with fleet.session("s1").stream(model=MODEL) as turn:
        key = worker.keys.text("s1", turn.request)
        await redis.xadd(key, {"text": "one"}, id="1-0")
        await turn.write("one")
        assert await redis.xlen(key) == 1
    await worker.take()


async def test_writing_to_a_turn_that_is_over(fleet: VoiceFleet, worker: FakeWorker) -> None:
    async with fleet.session("s1").stream(model=MODEL) as turn:
        await turn.write("Hello")
        await worker.end("s1", 1, (await worker.take()).name, 0, "stopped")
        assert [f async for f in turn] == []
        with pytest.raises(TurnEnded, match="stopped"):
            await turn.write("more")
        await turn.end_text()


async def test_an_iterator_of_text(fleet: VoiceFleet, worker: FakeWorker, redis: Redis) -> None:
    closed: list[bool] = []

    async def tokens() -> AsyncGenerator[str]:
        try:
            yield "one "
            yield ""
            yield "two"
        finally:
            closed.append(True)

    turn = await fleet.speak(tokens(), model=MODEL).send()
    asked = await worker.take()
    key = worker.keys.text(asked.session, asked.name)
    with anyio.fail_after(30):
        while await redis.xlen(key) < 3:
            await anyio.sleep(0.01)
    assert [f for _, f in await redis.xrange(key)] == [
        {b"text": b"one "},
        {b"text": b"two"},
        {b"end": b"1"},
    ]
    assert closed
    await worker.speak(asked, 1, 1)
    assert (await turn).reason == "completed"


async def test_an_iterator_that_raises_fails_its_turn(
    fleet: VoiceFleet, worker: FakeWorker, redis: Redis
) -> None:
    async def tokens() -> AsyncGenerator[str]:
        yield "one"
        raise LookupError("no more tokens")

    turn = fleet.session("s1").speak(tokens(), model=MODEL)
    with pytest.raises(LookupError, match="no more tokens"):
        await turn
    assert await worker.take()
    with anyio.fail_after(30):
        while not await redis.get(worker.keys.control("s1")):
            await anyio.sleep(0.01)
    assert await redis.get(worker.keys.control("s1")) == f"stop:{turn.request}".encode()


async def test_an_exception_in_the_block_stops_the_turn(
    fleet: VoiceFleet, worker: FakeWorker, redis: Redis
) -> None:
    with pytest.raises(KeyError):
        async with fleet.session("s1").speak("x", model=MODEL) as turn:
            raise KeyError
    assert await redis.get(worker.keys.control("s1")) == f"stop:{turn.request}".encode()
    await worker.take()


async def test_cancelling_stops_the_turn(
    fleet: VoiceFleet, worker: FakeWorker, redis: Redis
) -> None:
    with anyio.move_on_after(0.05) as scope:
        async with fleet.session("s1").speak("x", model=MODEL) as turn:
            await anext(turn)
    assert scope.cancelled_caught
    assert await redis.get(worker.keys.control("s1")) == f"stop:{turn.request}".encode()
    await worker.take()


async def test_a_cancelled_wait_loses_no_frame(fleet: VoiceFleet, worker: FakeWorker) -> None:
    turn = await fleet.session("s1").speak("x", model=MODEL).send()
    asked = await worker.take()
    await worker.start("s1", 1, asked.name)
    got: list[Frame] = []
    for n in range(1, 20):
        with anyio.move_on_after(0.002):
            got.append(await anext(turn))
        await worker.frames("s1", 1, n, n)
    await worker.end("s1", 1, asked.name, 19)
    got += [f async for f in turn]
    assert [f.id.n for f in got] == list(range(1, 20))


async def test_a_turn_that_is_dropped_is_read_no_more(
    fleet: VoiceFleet, worker: FakeWorker
) -> None:
    turn = await fleet.session("s1").speak("x", model=MODEL).send()
    subscription = turn._subscription
    assert subscription is not None and not subscription.closed
    del turn
    gc.collect()
    assert subscription.closed
    await worker.take()


async def test_start_within_is_a_deadline_in_server_time(
    fleet: VoiceFleet, worker: FakeWorker
) -> None:
    await fleet.speak("x", model=MODEL, start_within=5).send()
    deadline = (await worker.take()).deadline_ms
    assert deadline is not None
    assert deadline == pytest.approx(time.time() * 1000 + 5000, abs=1000)


async def test_errors_leave_the_client_as_they_are(redis_url: str, prefix: str) -> None:
    with pytest.raises(KeyError):
        async with VoiceFleet(redis_url, prefix=prefix):
            raise KeyError
    with anyio.move_on_after(0.02) as scope:
        async with VoiceFleet(redis_url, prefix=prefix):
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    fleet = VoiceFleet(redis_url)
    with pytest.raises(RuntimeError, match="not open"):
        fleet.session("s1")


def test_wav_header_is_fixed_on_close() -> None:
    file = BytesIO()
    with WavWriter(file, 48000) as wav:
        wav.write(bytes(1920) * 50)
        assert wav.seconds == 1.0
    file.seek(0)
    with wave.open(file) as read:
        assert read.getparams()[:4] == (1, 2, 48000, 48000)


async def test_sessions_of_the_fleet(fleet: VoiceFleet, worker: FakeWorker, redis: Redis) -> None:
    for name in ("a", "b:{c}"[:3]):
        key = worker.keys.session(name)
        await redis.hset(key, mapping={"state": "idle", "turn": 3, "first_audio_ms": "1.5"})
        await redis.expire(key, 60)
    async with aclosing(fleet.sessions()) as found:
        sessions = {name: record async for name, record in found}
    assert set(sessions) == {"a", "b:{"}
    assert sessions["a"].turn == 3 and sessions["a"].first_audio_ms == 1.5
