"""The embedded server and the test servers: they start, keep or drop data, and leave nothing."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis as blocking
from redis.asyncio import Redis, from_url
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import AuthenticationError, NoPermissionError

from tests.harness.key_leaks import KeyLeaks
from voicefleet import embedded_server
from voicefleet.embedded_server import HOST, EmbeddedServer, ServerStartError


def is_running(pid: int) -> bool:
    try:
        # A zombie still has a pid: read the state after the command's closing bracket.
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


async def read(server: EmbeddedServer, key: str) -> bytes | None:
    async with from_url(server.url) as client:
        return await client.get(key)


async def test_serves_on_loopback_and_is_gone_after_the_block() -> None:
    async with EmbeddedServer.start() as server:
        async with from_url(server.url) as client:
            info = await client.info("server")
            assert info["process_id"] == server.pid
            assert await client.config_get("save", "appendonly", "bind") == {
                "save": "",
                "appendonly": "no",
                "bind": HOST,
            }
        pid = server.pid
    assert not is_running(pid)


def test_serves_code_without_an_event_loop() -> None:
    with EmbeddedServer.start_blocking() as server, blocking.from_url(server.url) as client:
        assert client.ping()
        pid = server.pid
    assert not is_running(pid)


async def test_asks_for_its_password_and_takes_acl_lines() -> None:
    password = 'secret @ss/w"o\\rd:#'
    user = "user tail on >pw resetkeys ~tts:audio:* -@all +xread +@connection"
    async with EmbeddedServer.start(password=password, config=[user]) as server:
        async with from_url(server.url) as client:
            assert await client.set("anything", "goes")
        async with from_url(f"redis://tail:pw@{HOST}:{server.port}") as client:
            assert await client.xread({"tts:audio:{s}": "0"}) is not None
            with pytest.raises(NoPermissionError):
                await client.set("anything", "goes")
        with pytest.raises(AuthenticationError):
            async with from_url(f"redis://{HOST}:{server.port}") as client:
                await client.ping()
        assert "secret" not in command_line(server.pid)


async def test_restarts_with_its_data_on_the_same_port(tmp_path: Path) -> None:
    async with EmbeddedServer.start(directory=tmp_path) as server:
        url, first = server.url, server.pid
        async with from_url(url) as client:
            await client.set("kept", "yes")
        await server.restart()
        assert server.url == url
        assert server.pid != first
        assert await read(server, "kept") == b"yes"
        await server.kill()
        await server.restart()
        assert await read(server, "kept") == b"yes"
    async with EmbeddedServer.start(directory=tmp_path) as server:
        assert await read(server, "kept") == b"yes"


async def test_without_a_directory_a_restart_forgets() -> None:
    async with EmbeddedServer.start() as server:
        async with from_url(server.url) as client:
            await client.set("kept", "no")
        await server.restart()
        assert await read(server, "kept") is None


async def test_says_why_it_did_not_start() -> None:
    with pytest.raises(ServerStartError, match=r"(?s)exited with status 1.*'nonsense 3'"):
        async with EmbeddedServer.start(config=["nonsense 3"]):
            pass


async def test_a_port_that_is_taken_is_an_error_only_where_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port: int = taken.getsockname()[1]
        with pytest.raises(ServerStartError, match="in use"):
            async with EmbeddedServer.start(port=port):
                pass
        choose, offers = embedded_server._free_port, iter([port, port])
        monkeypatch.setattr(embedded_server, "_free_port", lambda: next(offers, None) or choose())
        async with EmbeddedServer.start() as server:
            assert server.port != port


@pytest.mark.skipif(sys.platform != "linux", reason="the tie to the parent is Linux's")
def test_dies_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import time\n"
        "from voicefleet.embedded_server import EmbeddedServer\n"
        "with EmbeddedServer.start_blocking() as server:\n"
        "    print(server.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path)},  # the killed one cannot tidy up
    )
    assert parent.stdout is not None
    with parent, parent.stdout as output:
        pid = int(output.readline())
        assert is_running(pid)
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(pid)


@pytest.mark.matrix
async def test_every_backend_has_what_the_fleet_needs(redis: Redis, prefix: str) -> None:
    info = await redis.info("server")
    version = tuple(int(part) for part in info["redis_version"].split(".")[:2])
    assert version >= (7, 0)
    assert await redis.xadd(f"{prefix}:requests:m", {"session": "s"}, id="1-1") == b"1-1"
    assert await redis.eval("return redis.call('EXISTS', KEYS[1])", 1, f"{prefix}:dead") == 0


async def test_the_cluster_serves_every_slot(cluster: RedisCluster, prefix: str) -> None:
    assert len(cluster.get_primaries()) == 3
    for index in range(32):
        await cluster.set(f"{prefix}:session:{{{index}}}", index, ex=60)
        assert await cluster.get(f"{prefix}:session:{{{index}}}") == str(index).encode()


def test_the_leak_check_finds_what_has_no_ttl_and_sweeps_all(redis_url: str) -> None:
    leaks = KeyLeaks("leak-check")
    leaks.watch(redis_url)
    leaks.allow("leak-check:control:{mine}")
    with blocking.from_url(redis_url) as client:
        for key in ("requests:m", "dead"):
            client.xadd(f"leak-check:{key}", {"a": "b"})
        client.zadd("leak-check:workers", {"w": 1})
        client.set("leak-check:control:{mine}", "stop")
        client.set("leak-check:session:{s}", "with a TTL", ex=60)
        client.set("leak-check:session:{t}", "without")
        client.set("leak-check:control:{theirs}", "pause")
        assert leaks.sweep() == [
            "leak-check:control:{theirs} (string)",
            "leak-check:session:{t} (string)",
        ]
        assert not list(client.scan_iter(match="leak-check*"))
