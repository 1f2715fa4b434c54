"""Every program in examples/ runs as it is, against a worker process with the tone engine."""

import os
import re
import sys
import wave
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import NamedTuple

import anyio
import numpy as np
import pytest
from redis.asyncio import from_url

from tests.harness import ROOT
from tests.harness.fleet import Orchestrator, worker_process
from voicefleet.embedded_server import EmbeddedServer
from voicefleet.schemas import FRAME_MS

pytestmark = pytest.mark.anyio

MODEL = "tone-test"
EXAMPLES = ROOT / "examples"


class Examples(NamedTuple):
    """A fleet of one worker, under the keys that the examples use."""

    url: str
    fleet: Orchestrator

    def environ(self) -> dict[str, str]:
        return {**os.environ, "VOICEFLEET_REDIS_URL": self.url}

    async def run(self, name: str, *arguments: str, cwd: Path) -> str:
        """What the example prints."""
        command = [sys.executable, str(EXAMPLES / name), *arguments]
        with anyio.fail_after(60):
            done = await anyio.run_process(command, stderr=None, cwd=cwd, env=self.environ())
        return done.stdout.decode()


@pytest.fixture(scope="module")
async def examples() -> AsyncGenerator[Examples]:
    async with EmbeddedServer.start() as server, from_url(server.url) as redis:
        fleet = Orchestrator(redis, "tts", MODEL)
        async with worker_process(fleet, server.url, "w1", ready_s=60):
            yield Examples(server.url, fleet)


def samples(path: Path) -> np.ndarray:
    """The samples of a WAV file of whole frames, with a sound in them."""
    with wave.open(str(path)) as wav:
        assert (wav.getframerate(), wav.getnchannels(), wav.getsampwidth()) == (48_000, 1, 2)
        found = np.frombuffer(wav.readframes(wav.getnframes()), "<i2")
    assert len(found) % (48 * FRAME_MS) == 0
    assert np.abs(found).max() > 1000
    return found


async def test_say(examples: Examples, tmp_path: Path) -> None:
    said = await examples.run("say.py", MODEL, cwd=tmp_path)
    seconds = len(samples(tmp_path / "say.wav")) / 48_000
    assert said == f"say.wav: {seconds:.2f} s, completed\n"
    assert 0.5 < seconds < 5


async def test_stream_llm_is_heard_before_the_last_token(
    examples: Examples, tmp_path: Path
) -> None:
    said = (await examples.run("stream_llm.py", MODEL, cwd=tmp_path)).splitlines()
    assert [line.split(" after")[0] for line in said[:2]] == ["first frame", "last token"]
    first, last = (float(line.split()[-2]) for line in said[:2])
    assert first < last - 0.5
    seconds = len(samples(tmp_path / "stream_llm.wav")) / 48_000
    assert said[2:] == [f"stream_llm.wav: {seconds:.2f} s"]


async def test_barge_in_ends_the_answer_at_once(examples: Examples, tmp_path: Path) -> None:
    heard, answer, reply = (await examples.run("barge_in.py", MODEL, cwd=tmp_path)).splitlines()
    assert heard.startswith("reply heard after ")
    assert float(heard.split()[-2]) < 500
    assert answer.startswith("answer: interrupted after ")
    assert reply.startswith("reply: stopped after ")
    # A turn is at most its lead of 400 ms ahead of the frame that its reader acted on.
    assert 50 <= int(answer.split()[-2]) < 50 + 20 + 25
    assert 25 <= int(reply.split()[-2]) < 25 + 20 + 25


async def test_resume_reader_continues_where_it_was_killed(
    examples: Examples, tmp_path: Path
) -> None:
    position = tmp_path / "resume_reader.position"
    command = [sys.executable, str(EXAMPLES / "resume_reader.py"), MODEL]
    for frame in (20, 60):
        process = await anyio.open_process(
            command, stdout=None, stderr=None, cwd=tmp_path, env=examples.environ()
        )
        with anyio.fail_after(60):
            while not position.exists() or int(position.read_text().split()[0][2:]) < frame:
                assert process.returncode is None
                await anyio.sleep(0.005)
        process.kill()
        await process.wait()
    last = position.read_text().split()[0]
    said = await examples.run("resume_reader.py", MODEL, cwd=tmp_path)
    heard = await examples.fleet.hear("announcements")
    assert said == f"completed after {heard.end.frames} frames, resumed after {last}\n"
    assert (tmp_path / "resume_reader.pcm").read_bytes() == heard.pcm


async def test_discover_capacity(examples: Examples, tmp_path: Path) -> None:
    worker, model, slots, requests = (
        await examples.run("discover_capacity.py", cwd=tmp_path)
    ).splitlines()
    assert worker == "worker w1: ready, 16 slots"
    assert model.startswith("model tone-test: voices ")
    assert re.fullmatch(r"  \d+ of 16 slots are free", slots)
    assert re.fullmatch(r"  \d+ requests are being spoken or wait", requests)


async def test_raw_redis(examples: Examples, tmp_path: Path) -> None:
    assert await examples.run("raw_redis.py", MODEL, cwd=tmp_path) == "raw_redis.wav: completed\n"
    samples(tmp_path / "raw_redis.wav")
    text = (EXAMPLES / "raw_redis.py").read_text()
    assert "import voicefleet" not in text and "from voicefleet" not in text


def test_each_example_has_a_test() -> None:
    tested = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in tested, f"examples/{path.name} is run by no test"
