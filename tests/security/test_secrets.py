"""Passwords: in no log line, no message, no list of processes, no record, no repr."""

import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import pytest
from anyio.abc import Process
from rich.pretty import pretty_repr

from tests.harness.acl import ADMIN, Guarded, set_password, write_acl
from tests.harness.fleet import HANG_S, ROOT, Orchestrator
from voicefleet.embedded_server import EmbeddedServer
from voicefleet.wire.connect import client
from voicefleet.wire.endpoint import RedisConfig, parse, resolve
from voicefleet.worker.config.loading import ConfigError, load
from voicefleet.worker.config.sections import Config
from voicefleet.worker.engines.hosting.process import EngineProcess

pytestmark = pytest.mark.anyio

SECRET = "hunter2/@ not to be seen: anywhere%41"
SIGHTS = (SECRET, quote(SECRET, safe=""), quote(SECRET), "hunter2")
TEXT = "One two three four five six seven. Eight nine ten eleven twelve."


def seen_in(said: str) -> list[str]:
    """The lines that show the secret, plain or quoted."""
    return [line for line in said.splitlines() if any(sight in line for sight in SIGHTS)]


@asynccontextmanager
async def running(*args: str, **environ: str) -> AsyncGenerator[Process]:
    """A command, with the secret where the caller puts it and nowhere else."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("VOICEFLEET_")}
    process = await anyio.open_process(
        [sys.executable, "-m", "voicefleet", *args],
        env=clean | environ,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
                await process.wait()
            await process.aclose()


async def output(process: Process, *, until: str = "\0") -> str:
    """All it says, to its end or up to some word."""
    assert process.stdout is not None
    said = b""
    with anyio.fail_after(HANG_S):
        async for chunk in process.stdout:
            said += chunk
            if until.encode() in said:
                break
    return said.decode()


async def said_by(*args: str, **environ: str) -> str:
    async with running(*args, **environ) as process:
        return await output(process)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncGenerator[EmbeddedServer]:
    """A server whose worker and orchestrator have the secret as their password."""
    acl = write_acl(tmp_path, "users.acl")
    for user in ("worker", "orchestrator"):
        assert set_password(acl, user, SECRET).returncode == 0
    async with EmbeddedServer.start(config=[f"aclfile {acl}"]) as server:
        yield server


def ways(port: int, user: str, directory: Path) -> dict[str, dict[str, str]]:
    """The ways to hand a process its password: each as its environment."""
    file = directory / "secret"
    file.write_text(SECRET + "\n")
    url, name = f"redis://127.0.0.1:{port}", {"VOICEFLEET_REDIS_USERNAME": user}
    return {
        "environment": {
            **name,
            "VOICEFLEET_REDIS_URL": url,
            "VOICEFLEET_REDIS_PASSWORD": SECRET,
        },
        "file": {
            **name,
            "VOICEFLEET_REDIS_URL": url,
            "VOICEFLEET_REDIS_PASSWORD_FILE": str(file),
        },
        "url": {
            "VOICEFLEET_REDIS_URL": f"redis://{user}:{quote(SECRET, safe='')}@127.0.0.1:{port}"
        },
    }


@pytest.mark.parametrize("way", ["environment", "file", "url"])
@pytest.mark.parametrize("form", ["json", "console"])
async def test_a_worker_keeps_its_password_to_itself(
    server: EmbeddedServer, tmp_path: Path, way: str, form: str
) -> None:
    """Through turns, refusals, a lost connection and a server that comes back another."""
    environ = ways(server.port, "worker", tmp_path)[way]
    flags = (*("--set", "logging.level=debug"), *("--set", f"logging.format={form}"))
    named = ("worker", "--config", "configs/tone.yaml", "--name", "w1")
    guard = Guarded(server.url)
    records: list[str] = []
    async with running(*named, *flags, **environ) as process:
        async with guard.client(ADMIN) as admin:
            fleet = Orchestrator(admin, "tts")
            await fleet.worker_is("w1", "ready")
            listed = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode()
            await fleet.add("s", TEXT, lead_ms=0)
            await fleet.hear("s")
            await fleet.add("bad", "Too fast.", speed=9)
            await fleet.hear("bad")
            await admin.set(fleet.keys.audio("debris"), "no stream", ex=60)
            await fleet.add("debris", TEXT)
            await fleet.add("cut", TEXT, lead_ms=0)
            await admin.execute_command("CLIENT KILL TYPE normal SKIPME yes")
            await fleet.hear("cut")
            records = [str(await _value(admin, key)) async for key in admin.scan_iter()]
            records.append(str(await admin.client_list()))
        await server.restart()
        async with guard.client(ADMIN) as admin:
            fleet = Orchestrator(admin, "tts")
            await fleet.worker_is("w1", "ready")
            await admin.execute_command("ACL SETUSER worker resetpass")
            await admin.execute_command("CLIENT KILL USER worker")
        said = await output(process, until="WRONGPASS")
    # The watch is always connected; whether a call falls into the time without a server is chance.
    assert "ready" in said and "watch_lost" in said and "WRONGPASS" in said
    assert len(records) > 5
    assert seen_in("\n".join([said, listed, *records])) == []


async def _value(redis: Any, key: bytes) -> object:
    match (await redis.type(key)).decode():
        case "hash":
            return await redis.hgetall(key)
        case "stream":
            return await redis.xrange(key)
        case "zset":
            return await redis.zrange(key, 0, -1)
        case _:
            return await redis.get(key)


@pytest.mark.parametrize("way", ["environment", "file", "url"])
async def test_commands_do_not_tell(server: EmbeddedServer, tmp_path: Path, way: str) -> None:
    """Neither where they succeed nor where they fail, with a traceback or without."""
    there = ways(server.port, "orchestrator", tmp_path)[way]
    nowhere = {k: v.replace(str(server.port), "1") for k, v in there.items()}
    wrong = {k: v.replace("orchestrator", "observer") for k, v in there.items()}
    out = ("--out", str(tmp_path / "x.wav"))
    said = [
        await said_by(*command, **environ)
        for environ in (there, nowhere, wrong)
        for command in (("doctor",), ("workers", "--debug"), ("say", "Hello.", "--debug", *out))
    ]
    assert "user orchestrator may do all" in said[0]
    assert all("Traceback" in text for text in said[4:6] + said[7:9])
    assert seen_in("\n".join(said)) == []


@pytest.mark.parametrize("way", ["environment", "file", "url"])
async def test_a_worker_that_is_refused_ends_and_does_not_tell(
    server: EmbeddedServer, tmp_path: Path, way: str
) -> None:
    environ = ways(server.port, "observer", tmp_path)[way]
    for flags in ((), ("--debug", "--log-level", "debug")):
        args = ("worker", "--config", "configs/tone.yaml", *flags)
        async with running(*args, **environ) as process:
            said = await output(process)
            assert await process.wait() == 1
        assert "WRONGPASS" in said or "invalid username-password" in said
        assert seen_in(said) == []


MISTAKES = {
    "a bare slash": {"VOICEFLEET_REDIS_URL": "redis://u:hunter2/x@127.0.0.1:1"},
    "no such scheme": {"VOICEFLEET_REDIS_URL": "http://u:hunter2@127.0.0.1:1"},
    "no port": {"VOICEFLEET_REDIS_URL": "redis://u:hunter2@127.0.0.1:hunter2"},
    "no database": {"VOICEFLEET_REDIS_URL": "redis://u@127.0.0.1:1/hunter2"},
    "a bare question mark": {"VOICEFLEET_REDIS_URL": "redis://u:x?hunter2@127.0.0.1:1"},
    "a misspelt key": {"VOICEFLEET_REDIS_PASWORD": "hunter2", "VOICEFLEET_REDIS_URL": "x"},
}


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_mistakes_are_not_quoted(mistake: str) -> None:
    worker = ("worker", "--config", "configs/tone.yaml", "--debug")
    for command in (worker, ("workers", "--debug")):
        said = await said_by(*command, **MISTAKES[mistake])
        assert "Traceback" in said
        assert seen_in(said) == []


def test_nothing_that_holds_them_shows_them(tmp_path: Path) -> None:
    quoted = quote(SECRET, safe="")
    redis = RedisConfig(url=f"redis://u:{quoted}@h:1", password=SECRET, sentinel_password=SECRET)
    endpoint = resolve(redis)
    assert endpoint.password == SECRET
    holders = [redis, Config(redis=redis), endpoint, parse(redis.url), client(endpoint)]
    for holder in holders:
        for shown in (repr(holder), str(holder), f"{holder}", pretty_repr(holder)):
            assert seen_in(shown) == []


@pytest.mark.parametrize("key", ["password", "sentinel_password", "url"])
def test_a_configuration_that_is_wrong_is_not_quoted(tmp_path: Path, key: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"redis: {{{key}: [hunter2]}}\n")
    with pytest.raises(ConfigError) as caught:
        load(file, environ={}, overrides=())
    assert key in str(caught.value) and seen_in(str(caught.value)) == []


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="there is no /proc")
async def test_the_engines_process_does_not_inherit_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It reads what others trained and recorded, and speaks to nobody but its worker."""
    for variable in ("PASSWORD", "SENTINEL_PASSWORD", "URL"):
        monkeypatch.setenv(f"VOICEFLEET_REDIS_{variable}", SECRET)
    process = await EngineProcess.start(lambda _: None, lambda _: None)
    try:
        proc = Path(f"/proc/{process.pid}")
        shown = "\n".join((proc / name).read_bytes().decode() for name in ("environ", "cmdline"))
    finally:
        await process.stop(wait=False)
    assert seen_in(shown.replace("\0", "\n")) == []
