"""``say``: where text comes from, where audio goes, and what is left when it is cut short."""

import signal
import wave
from pathlib import Path

import anyio
import pytest
from redis.asyncio import Redis

from tests.harness.cli_process import COMMAND, Terminal, rest_of, running
from tests.producer.fake_worker import FakeWorker, pcm
from voicefleet.producer.wav import UNKNOWN

pytestmark = [pytest.mark.anyio, pytest.mark.alone]


@pytest.fixture
async def worker(redis: Redis, prefix: str) -> FakeWorker:
    worker = FakeWorker(redis, prefix)
    await worker.register()
    return worker


@pytest.fixture
def where(redis_url: str, prefix: str) -> dict[str, str]:
    return {"VOICEFLEET_REDIS_URL": redis_url, "VOICEFLEET_REDIS_PREFIX": prefix}


async def test_a_hyphen_is_standard_input(
    worker: FakeWorker, redis: Redis, where: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "x.wav"
    async with running("say", "-", "--out", str(out), **where) as process:
        assert process.stdin is not None
        await process.stdin.send(b"From a pipe.\n")
        await process.stdin.aclose()
        asked = await worker.take()
        key = worker.keys.text(asked.session, asked.name)
        while await redis.xlen(key) < 2:
            await anyio.sleep(0.01)
        assert (await redis.xrange(key))[0][1] == {b"text": b"From a pipe.\n"}
        await worker.speak(asked, 1, 5)
        assert await process.wait() == 0
    with wave.open(str(out)) as wav:
        assert wav.getnframes() == 5 * 960


async def test_a_hyphen_is_standard_output_as_wav(
    worker: FakeWorker, where: dict[str, str]
) -> None:
    async with running("say", "Hello.", "--out", "-", **where) as process:
        await worker.speak(await worker.take(), 1, 5)
        assert process.stdout is not None
        audio = b"".join([chunk async for chunk in process.stdout])
        assert await process.wait() == 0
    assert audio[:4] == b"RIFF" and audio[40:44] == UNKNOWN.to_bytes(4, "little")
    assert audio[44:] == b"".join(pcm(1, n) for n in range(1, 6))


async def test_standard_output_that_is_a_file_gets_a_whole_header(
    worker: FakeWorker, where: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "x.wav"
    command = ["sh", "-c", f'exec "$@" > {path}', "sh", *COMMAND]
    async with running("say", "Hello.", "--out", "-", command=command, **where) as process:
        await worker.speak(await worker.take(), 1, 5)
        assert await process.wait() == 0
    with wave.open(str(path)) as wav:
        assert wav.readframes(UNKNOWN) == b"".join(pcm(1, n) for n in range(1, 6))


@pytest.mark.parametrize("args", [("say", "--sped", "2"), ("say", "x", "--out", "--speed")])
async def test_a_mistyped_option_is_no_text(args: tuple[str, ...]) -> None:
    async with running(*args) as process:
        output = await rest_of(process.stderr)
        assert await process.wait() == 2
    assert "option" in output and args[-1 if "--out" in args else 1] in output


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_stops_the_turn_and_closes_the_file(
    signum: signal.Signals,
    worker: FakeWorker,
    redis: Redis,
    where: dict[str, str],
    tmp_path: Path,
) -> None:
    out = tmp_path / "x.wav"
    async with running("say", "Hello.", "--out", str(out), **where) as process:
        asked = await worker.take()
        await worker.start(asked.session, 1, asked.name)
        await worker.frames(asked.session, 1, 1, 10)
        while out.stat().st_size < 8192:  # the file's buffer
            await anyio.sleep(0.01)
        process.send_signal(signum)
        assert await process.wait() == 128 + signum
        assert "Traceback" not in await rest_of(process.stderr)
    assert await redis.get(worker.keys.control(asked.session)) == f"stop:{asked.name}".encode()
    with wave.open(str(out)) as wav:
        assert 0 < wav.getnframes() <= 10 * 960
        assert out.stat().st_size == 44 + 2 * wav.getnframes()


async def test_text_without_a_word_is_refused(
    worker: FakeWorker, redis: Redis, where: dict[str, str], tmp_path: Path
) -> None:
    out = str(tmp_path / "x.wav")
    async with running("say", " \n ", "--out", out, **where) as process:
        output = await rest_of(process.stderr)
        assert await process.wait() == 1
    assert output.startswith("voicefleet: there is nothing to say") and output.count("\n") == 1
    assert await redis.xlen(worker.keys.requests("tone-test")) == 0

    async with running("say", "--out", out, **where) as process:
        assert process.stdin is not None
        await process.stdin.send(b" \n \n")
        await process.stdin.aclose()
        asked = await worker.take()
        output = await rest_of(process.stderr)
        assert await process.wait() == 1
    assert output.startswith("voicefleet: there is nothing to say") and output.count("\n") == 1
    assert await redis.get(worker.keys.control(asked.session)) == f"stop:{asked.name}".encode()


async def test_a_turn_without_frames_has_its_number(
    worker: FakeWorker, where: dict[str, str], tmp_path: Path
) -> None:
    async with running("say", "...", "--out", str(tmp_path / "x.wav"), **where) as process:
        await worker.speak(await worker.take(), 7, 0)
        output = await rest_of(process.stderr)
        assert await process.wait() == 0
    assert "turn 7 · 0 frames" in output


async def test_the_live_line_leaves_nothing_on_a_terminal(
    worker: FakeWorker, where: dict[str, str], tmp_path: Path
) -> None:
    """Longer than the terminal is wide, it takes one row all the same, and is wiped."""
    terminal = Terminal(columns=80)
    session = "s" * 100
    args = ("say", "Hello.", "--session", session, "--out", str(tmp_path / "x.wav"))
    async with running(*args, stderr=terminal.theirs, TERM="xterm", **where) as process:
        asked = await worker.take()
        await worker.start(asked.session, 1, asked.name)
        for n in range(1, 6):
            await worker.frames(asked.session, 1, n, n)
            await anyio.sleep(0.12)
        await worker.end(asked.session, 1, asked.name, 5)
        assert await process.wait() == 0
        written = await terminal.rest()
    *shown, last = written.split("\r\x1b[2K")
    assert len(shown) > 2 and all("\n" not in line and len(line) < 80 for line in shown)
    assert last.startswith(f"session {session} · turn 1 · 5 frames") and last.endswith("\r\n")
