"""How signals end the commands, whatever they were when the command was started."""

import signal
import subprocess
import sys

import anyio
import pytest
from redis.asyncio import Redis, from_url

from tests.harness.cli_process import COMMAND, TONE, alive, rest_of, running, until
from tests.producer.fake_worker import FakeWorker

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

# What a shell does to a command that a script starts with "&".
IN_BACKGROUND = [
    *(sys.executable, "-c"),
    "import os, signal, sys\n"
    "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "os.execv(sys.argv[1], sys.argv[1:])",
    *COMMAND,
]
BOTH = pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture
def where(redis_url: str, prefix: str) -> dict[str, str]:
    return {"VOICEFLEET_REDIS_URL": redis_url, "VOICEFLEET_REDIS_PREFIX": prefix}


@BOTH
async def test_up_in_the_background_of_a_script(signum: signal.Signals) -> None:
    async with running("up", "--config", TONE, command=IN_BACKGROUND) as process:
        url = (await until(process.stdout, "HGETALL")).split(" is served at ")[1].split()[0]
        async with from_url(url) as redis:
            pid = int((await redis.hgetall("tts:worker:up"))[b"pid"])
            server = (await redis.info("server"))["process_id"]
        process.send_signal(signum)
        assert await process.wait() == 128 + signum
        with anyio.fail_after(5):
            while alive(pid) or alive(server):
                await anyio.sleep(0.02)


@BOTH
async def test_demo_in_the_background_of_a_script(signum: signal.Signals) -> None:
    async with running("demo", "--config", TONE, command=IN_BACKGROUND) as process:
        await until(process.stderr, "worker ready")
        process.send_signal(signum)
        assert await process.wait() == 128 + signum
        assert "Traceback" not in await rest_of(process.stderr)


@BOTH
async def test_worker_in_the_background_of_a_script(
    signum: signal.Signals, where: dict[str, str]
) -> None:
    args = ("worker", "--config", TONE)
    async with running(*args, command=IN_BACKGROUND, **where) as process:
        await until(process.stderr, "ready")
        process.send_signal(signum)
        assert await process.wait() == 0


@BOTH
async def test_say_in_the_background_of_a_script(
    signum: signal.Signals, where: dict[str, str], redis: Redis, prefix: str
) -> None:
    worker = FakeWorker(redis, prefix)
    await worker.register()
    async with running("say", "Hello.", command=IN_BACKGROUND, **where) as process:
        asked = await worker.take()
        process.send_signal(signum)
        assert await process.wait() == 128 + signum
    assert await redis.get(worker.keys.control(asked.session)) == f"stop:{asked.name}".encode()


@BOTH
async def test_tail_in_the_background_of_a_script(
    signum: signal.Signals, where: dict[str, str], redis: Redis, prefix: str
) -> None:
    worker = FakeWorker(redis, prefix)
    await worker.start("s1", 1, "r1")
    async with running("tail", "s1", "--all", command=IN_BACKGROUND, **where) as process:
        await until(process.stdout, "start")
        process.send_signal(signum)
        assert await process.wait() == 128 + signum
        assert "Traceback" not in await rest_of(process.stderr)


@BOTH
async def test_a_signal_while_commands_are_imported_is_quiet(signum: signal.Signals) -> None:
    command = [sys.executable, "-X", "importtime", *COMMAND[1:]]
    async with running("workers", command=command) as process:
        await until(process.stderr, "msgspec")  # long before all is imported
        process.send_signal(signum)
        assert await process.wait() == 128 + signum
        output = await rest_of(process.stderr)
    assert "voicefleet.cli.app" not in output, "the signal came too late to show anything"
    assert "Traceback" not in output and "KeyboardInterrupt" not in output


def test_the_entry_point_imports_nothing_that_takes_time() -> None:
    """Until it runs, Ctrl-C would print where Python was."""
    code = "import sys, voicefleet.cli; print(*{n.partition('.')[0] for n in sys.modules})"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    slow = {"anyio", "asyncio", "cyclopts", "msgspec", "numpy", "redis", "rich"}
    assert "voicefleet" in told.stdout.split() and not slow & set(told.stdout.split())
