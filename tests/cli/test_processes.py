"""The command line as processes: pipes, signals, and a real worker with a synthetic engine."""

import signal
import wave
from pathlib import Path

import anyio
import pytest
from redis.asyncio import Redis, from_url

from tests.harness.cli_process import TONE, alive, running
from tests.producer.fake_worker import FakeWorker, pcm

pytestmark = [pytest.mark.anyio, pytest.mark.alone]


@pytest.fixture
async def worker(redis: Redis, prefix: str) -> FakeWorker:
    worker = FakeWorker(redis, prefix)
    await worker.register()
    return worker


async def test_say_writes_raw_audio_into_a_pipe(
    worker: FakeWorker, redis_url: str, prefix: str
) -> None:
    where = ("--redis-url", redis_url, "--prefix", prefix)
    async with running("say", "Hello.", "--speed", "1.5", *where) as process:
        asked = await worker.take()
        assert (asked.text, asked.speed) == ("Hello.", 1.5)
        await worker.speak(asked, 1, 5)
        assert process.stdout is not None and process.stderr is not None
        audio = b"".join([chunk async for chunk in process.stdout])
        output = b"".join([chunk async for chunk in process.stderr]).decode()
        assert await process.wait() == 0
    assert audio == b"".join(pcm(1, n) for n in range(1, 6))
    assert "5 frames (0.10 s) · first audio" in output and "Hello" not in output


async def test_say_speaks_what_is_typed(
    worker: FakeWorker, redis: Redis, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    out = tmp_path / "x.wav"
    where = ("--redis-url", redis_url, "--prefix", prefix)
    async with running("say", "--out", str(out), *where) as process:
        assert process.stdin is not None
        await process.stdin.send("first line\nsecond ünf".encode())
        asked = await worker.take()
        key = worker.keys.text(asked.session, asked.name)
        while await redis.xlen(key) < 2:
            await anyio.sleep(0.01)
        await process.stdin.send(b"inished")
        await process.stdin.aclose()
        while await redis.xlen(key) < 4:
            await anyio.sleep(0.01)
        assert [fields for _, fields in await redis.xrange(key)] == [
            {b"text": b"first line\n"},
            {b"flush": b"1"},
            {b"text": "second ünfinished".encode()},
            {b"end": b"1"},
        ]
        await worker.speak(asked, 1, 5)
        assert await process.wait() == 0
    with wave.open(str(out)) as wav:
        assert wav.getnframes() == 5 * 960


async def test_interrupting_say_stops_the_turn(
    worker: FakeWorker, redis: Redis, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    where = ("--redis-url", redis_url, "--prefix", prefix, "--out", str(tmp_path / "x.wav"))
    async with running("say", "Hello.", *where) as process:
        asked = await worker.take()
        await worker.start(asked.session, 1, asked.name)
        await worker.frames(asked.session, 1, 1, 3)
        await anyio.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        assert process.stderr is not None
        output = b"".join([chunk async for chunk in process.stderr]).decode()
    assert "Traceback" not in output
    assert await redis.get(worker.keys.control(asked.session)) == f"stop:{asked.name}".encode()


async def test_demo_with_a_synthetic_voice(tmp_path: Path) -> None:
    out = tmp_path / "demo.wav"
    async with running("demo", "One two.", "--config", TONE, "--out", str(out)) as process:
        assert process.stderr is not None and process.stdout is not None
        output = b"".join([chunk async for chunk in process.stderr]).decode()
        assert await process.wait() == 0, output
    assert "session demo · turn 1" in output and "completed" in output
    with wave.open(str(out)) as wav:
        assert wav.getparams()[:3] == (1, 2, 48000)
        assert wav.getnframes() > 4800


async def test_demo_says_why_it_fails(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        f"worker: {{models: [tone-nope]}}\nmodel_manager: {{voicepacks_dir: {tmp_path}}}\n"
    )
    async with running("demo", "--config", str(bad)) as process:
        assert process.stderr is not None
        output = b"".join([chunk async for chunk in process.stderr]).decode()
        assert await process.wait() == 1
    assert "the worker ended with status 1" in output and "Traceback" not in output


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_up_leaves_nothing_behind(signum: signal.Signals) -> None:
    async with running("up", "--config", TONE) as process:
        assert process.stdout is not None
        output = ""
        while "HGETALL" not in output:
            output += (await process.stdout.receive()).decode()
        url = output.split(" is served at ")[1].split()[0]
        async with from_url(url) as redis:
            pid = int((await redis.hgetall("tts:worker:up"))[b"pid"])
            server = (await redis.info("server"))["process_id"]
        process.send_signal(signum)
        assert await process.wait() == (-9 if signum == signal.SIGKILL else 128 + signum)
        with anyio.fail_after(5):
            while alive(pid) or alive(server):
                await anyio.sleep(0.02)
