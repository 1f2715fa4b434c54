"""The users of ``deploy/redis``: each can do its work, and nothing else."""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import pytest

from tests.harness import working_day
from tests.harness.acl import ADMIN, FOLDER, Guarded, guarded, password
from tests.harness.fleet import HANG_S, Orchestrator, serving
from tests.harness.key_leaks import KeyLeaks
from voicefleet.cli import main
from voicefleet.wire.link import ReplyError

pytestmark = pytest.mark.anyio

Command = tuple[str | int, ...]
NO_RIGHTS = re.compile(r"NOPERM|ERR (ACL failure in script|The user executing the script can't)")
DEBUGGABLE = ("enable-debug-command yes", "enable-module-command yes")
"""Else the server refuses these before it looks at the user's rights."""


@pytest.fixture
async def guard(binary: str | None, tmp_path: Path) -> AsyncGenerator[Guarded]:
    """A server with the three roles, whose keys are checked in the end."""
    async with guarded(tmp_path, binary=binary, config=DEBUGGABLE) as guard:
        yield guard
        leaks = KeyLeaks("tts")
        leaks.watch(guard.url(ADMIN))
        assert leaks.sweep() == []


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Awaitable[tuple[int, str]]]:
    """Runs a command: status, and what it said."""

    async def run(*args: str) -> tuple[int, str]:
        status = await anyio.to_thread.run_sync(main, args)
        said = capfd.readouterr()
        return status, said.out + said.err

    return run


@pytest.mark.matrix
class TestWork:
    async def test_turns_and_controls(self, guard: Guarded) -> None:
        async with guard.client("orchestrator") as redis, guard.client(ADMIN) as admin:
            fleet = Orchestrator(redis, "tts")
            await working_day.turns_and_controls(fleet, guard.url("worker"), admin)
            assert {letter["reason"] for letter in await fleet.dead()} == {"rejected"}
        assert await guard.refusals() == []

    async def test_deaths_and_handovers(self, guard: Guarded) -> None:
        async with guard.client("orchestrator") as redis:
            fleet = Orchestrator(redis, "tts")
            await working_day.deaths_and_handovers(fleet, guard.url("worker"))
        assert await guard.refusals() == []

    async def test_debris_in_place_of_the_audio(self, guard: Guarded) -> None:
        async with guard.client("orchestrator") as redis, guard.client(ADMIN) as admin:
            fleet = Orchestrator(redis, "tts")
            async with serving(guard.url("worker"), "tts"):
                await fleet.add("s", working_day.TEXT)
                await fleet.hear("s", until=5)
                await admin.set("tts:audio:{s}", "debris", ex=60)
                with anyio.fail_after(HANG_S):
                    while await admin.type("tts:audio:{s}") != b"stream":
                        await anyio.sleep(0.01)
                assert (await fleet.hear("s")).end.reason == "completed"
        assert await guard.refusals() == []

    async def test_the_python_client(self, guard: Guarded) -> None:
        await working_day.the_python_client(guard.url("orchestrator"), guard.url("worker"), "tts")
        assert await guard.refusals() == []

    async def test_an_observer_sees_everything(self, guard: Guarded, cli: Any) -> None:
        async with guard.client("orchestrator") as redis, guard.client("observer") as observer:
            fleet, seen = Orchestrator(redis, "tts"), Orchestrator(observer, "tts")
            async with serving(guard.url("worker"), "tts"):
                await fleet.add("s", request="r", stream=1)
                await fleet.write("s", "r", text=working_day.TEXT, flush=1)
                await seen.hear("s", until=5)
                await fleet.control("s", "pause")
                assert await observer.get("tts:control:{s}") == b"pause"
                assert await observer.xlen("tts:text:{s}:r") == 1
                assert await observer.xpending("tts:requests:tone-test", "workers")
                assert (await seen.worker("w1"))["state"] == "ready"
                where = ("--redis-url", guard.url("observer"))
                for command in (("workers",), ("models",), ("sessions",)):
                    status, said = await cli(*command, *where)
                    assert status == 0 and "tone-test" in said
                await fleet.control("s", "stop")
                status, said = await cli("tail", "s", "--all", "--turns", "1", *where)
                assert status == 0 and "stopped" in said
        # The client may add a session to a read that waits, where the user may unblock it.
        assert {line for line in await guard.refusals() if "client|unblock" not in line} == set()

    @pytest.mark.parametrize(
        ("user", "found"),
        [
            ("orchestrator", "may do all that clients do"),
            ("worker", "may do all that workers do"),
            ("observer", "may do all that observers do"),
        ],
    )
    async def test_the_doctor_knows_the_roles(
        self, guard: Guarded, cli: Any, user: str, found: str
    ) -> None:
        status, said = await cli("doctor", "--redis-url", guard.url(user))
        failed = [line for line in said.splitlines() if line.startswith("fail")]
        assert (status, failed) == (1, ["fail no worker is ready: requests wait"]), said
        assert f"user {user} {found}" in said
        assert "could not look" not in said


def forbidden(role: str) -> list[Command]:
    """What a role is refused, beside what every role is."""
    queue, audio, control, text = (
        "tts:requests:m",
        "tts:audio:{s}",
        "tts:control:{s}",
        "tts:text:{s}:r",
    )
    lease, session, dead, worker = "tts:lease:{s}", "tts:session:{s}", "tts:dead", "tts:worker:w"
    script = "return redis.call('SET', KEYS[1], 'stop')"
    table: dict[str, list[Command]] = {
        "orchestrator": [
            # The queue can be added to, not read, emptied or taken from.
            ("XRANGE", queue, "-", "+"),
            ("XREAD", "STREAMS", queue, "0"),
            ("XREADGROUP", "GROUP", "workers", "me", "STREAMS", queue, ">"),
            ("XCLAIM", queue, "workers", "me", 0, "1-0"),
            ("XAUTOCLAIM", queue, "workers", "me", 0, "0"),
            ("XACK", queue, "workers", "1-0"),
            ("XDEL", queue, "1-0"),
            ("XTRIM", queue, "MAXLEN", 0),
            ("XSETID", queue, "1-0"),
            ("XPENDING", queue, "workers"),
            ("XINFO", "CONSUMERS", queue, "workers"),
            ("XGROUP", "CREATE", queue, "mine", "0", "MKSTREAM"),
            ("XGROUP", "DESTROY", queue, "workers"),
            ("XGROUP", "SETID", queue, "workers", "$"),
            ("XGROUP", "DELCONSUMER", queue, "workers", "w"),
            ("EXPIRE", queue, 1),
            ("DEL", queue),
            ("UNLINK", queue),
            ("SET", queue, "x"),
            # What workers say is theirs.
            ("XADD", audio, "*", "pcm", "x"),
            ("XTRIM", audio, "MAXLEN", 0),
            ("DEL", audio),
            ("EXPIRE", audio, 1),
            ("HSET", session, "state", "idle"),
            ("DEL", session),
            ("HSET", worker, "state", "ready"),
            ("DEL", worker),
            ("ZADD", "tts:workers", 1, "w"),
            ("ZREM", "tts:workers", "w"),
            ("HSET", "tts:model:m", "voices", "x"),
            ("XADD", dead, "*", "reason", "x"),
            ("XDEL", dead, "1-0"),
            ("DEL", dead),
            # What workers keep to themselves.
            ("HGETALL", lease),
            ("HSET", lease, "owner", "me"),
            ("HINCRBY", lease, "epoch", 1),
            ("DEL", lease),
            ("ZRANGE", "tts:spoken:{s}", 0, -1),
            ("DEL", "tts:spoken:{s}"),
            ("SET", "tts:wake:{tts:requests:m}", "1"),
            ("EVAL", script, 1, control),
            ("EVALSHA", "0" * 40, 0),
            ("SCRIPT", "LOAD", "return 1"),
            ("CLIENT", "TRACKING", "ON", "BCAST"),
            # Its own keys, but not as another type.
            ("HSET", control, "a", "b"),
            ("APPEND", control, "x"),
            ("DEL", text),
            ("XTRIM", text, "MAXLEN", 0),
        ],
        "worker": [
            ("SET", control, "stop"),
            ("DEL", control),
            ("EXPIRE", control, 1),
            ("GETDEL", control),
            ("XADD", queue, "*", "session", "s"),
            ("DEL", queue),
            ("EXPIRE", queue, 1),
            ("XTRIM", queue, "MAXLEN", 0),
            ("XSETID", queue, "1-0"),
            ("XGROUP", "DESTROY", queue, "workers"),
            ("XGROUP", "SETID", queue, "workers", "$"),
            ("XTRIM", text, "MAXLEN", 0),
            ("UNLINK", text),
            ("XDEL", audio, "1-0"),
            ("XRANGE", dead, "-", "+"),
            ("XDEL", dead, "1-0"),
            ("DEL", dead),
            ("SCAN", 0),
            ("CLIENT", "KILL", "ID", 1),
            # Scripts are no way around.
            ("EVAL", script, 1, control),
            ("EVAL", "return redis.call('SET', 'tts:control:{s}', 'stop')", 0),
            ("EVAL", "return redis.call('DEL', KEYS[1])", 1, queue),
            ("EVAL", "return redis.call('XTRIM', KEYS[1], 'MAXLEN', 0)", 1, queue),
            ("EVAL", "return redis.call('FLUSHALL')", 0),
            ("EVAL", "return redis.call('PUBLISH', 'c', 'x')", 0),
            ("EVAL", "return redis.call('KEYS', '*')", 0),
            ("EVAL", "return redis.call('GET', 'other:key')", 0),
        ],
        "observer": [
            ("XADD", queue, "*", "session", "s"),
            ("XREADGROUP", "GROUP", "workers", "me", "STREAMS", queue, ">"),
            ("XCLAIM", queue, "workers", "me", 0, "1-0"),
            ("XACK", queue, "workers", "1-0"),
            ("XDEL", queue, "1-0"),
            ("XTRIM", queue, "MAXLEN", 0),
            ("XGROUP", "CREATE", queue, "mine", "0"),
            ("XADD", text, "*", "text", "x"),
            ("SET", control, "stop"),
            ("GETDEL", control),
            ("GETEX", control, "EX", 1),
            ("DEL", control),
            ("UNLINK", control),
            ("EXPIRE", control, 1),
            ("PERSIST", control),
            ("XADD", audio, "*", "pcm", "x"),
            ("HSET", session, "state", "idle"),
            ("HDEL", session, "state"),
            ("ZREM", "tts:workers", "w"),
            ("EVAL", script, 1, control),
            ("EVAL_RO", "return 1", 0),
            ("FCALL_RO", "f", 0),
            ("CLIENT", "TRACKING", "ON", "BCAST"),
            ("CLIENT", "UNBLOCK", 1),
            ("SORT", lease, "STORE", "x"),
        ],
    }
    return table[role] + [
        ("KEYS", "*"),
        ("RANDOMKEY",),
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("SWAPDB", 0, 1),
        ("CONFIG", "GET", "*"),
        ("CONFIG", "SET", "dir", "/"),
        ("CONFIG", "REWRITE"),
        ("DEBUG", "SLEEP", 0),
        ("SHUTDOWN", "NOSAVE"),
        ("SAVE",),
        ("BGSAVE",),
        ("BGREWRITEAOF",),
        ("SCRIPT", "FLUSH"),
        ("SCRIPT", "KILL"),
        ("FUNCTION", "LOAD", "#!lua name=x"),
        ("FUNCTION", "FLUSH"),
        ("FUNCTION", "STATS"),
        ("MODULE", "LIST"),
        ("MODULE", "LOAD", "/x.so"),
        ("ACL", "LIST"),
        ("ACL", "USERS"),
        ("ACL", "GETUSER", role),
        ("ACL", "SETUSER", role, "allcommands"),
        ("ACL", "DELUSER", role),
        ("ACL", "LOAD"),
        ("ACL", "LOG"),
        ("CLIENT", "LIST"),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("CLIENT", "PAUSE", 1),
        ("CLIENT", "NO-EVICT", "on"),
        ("MONITOR",),
        ("SLOWLOG", "GET"),
        ("REPLICAOF", "NO", "ONE"),
        ("FAILOVER",),
        ("PSYNC", "?", -1),
        ("SYNC",),
        ("CLUSTER", "RESET"),
        ("CLUSTER", "FORGET", "0" * 40),
        ("CLUSTER", "SETSLOT", 0, "STABLE"),
        ("DUMP", audio),
        ("RESTORE", audio, 0, "x"),
        ("MIGRATE", "h", 1, audio, 0, 1),
        ("COPY", audio, "tts:audio:{t}"),
        ("RENAME", audio, "tts:audio:{t}"),
        ("MOVE", audio, 1),
        ("OBJECT", "ENCODING", audio),
        ("SUBSCRIBE", "c"),
        ("PSUBSCRIBE", "*"),
        ("PUBLISH", "c", "x"),
        ("GET", "other:key"),
        ("SET", "other:key", "x"),
        ("XADD", "ttsx:requests:m", "*", "a", "b"),
        ("XRANGE", "tts2:audio:{s}", "-", "+"),
    ]


@pytest.mark.matrix
@pytest.mark.parametrize("role", ["orchestrator", "worker", "observer"])
async def test_everything_else_is_refused(guard: Guarded, role: str) -> None:
    table = forbidden(role)
    assert len(table) == len(set(table)) > 60
    allowed: list[str] = []
    for command in table:
        # A connection each: what is not refused may be the first of many answers.
        async with guard.link(guard.url(role)) as link:
            (said,) = await link.batch([command])
        if not (isinstance(said, ReplyError) and NO_RIGHTS.match(str(said))):
            allowed.append(f"{command}: {said!r}")
    assert allowed == []


@pytest.mark.matrix
class TestStrangers:
    async def test_nobody_is_somebody_without_a_password(self, guard: Guarded) -> None:
        port = guard.port
        async with await anyio.connect_tcp("127.0.0.1", port) as stranger:
            for command in (b"PING", b"INFO", b"SCAN 0", b"XLEN tts:dead", b"HELLO 3"):
                await stranger.send(command + b"\r\n")
                assert (await stranger.receive()).startswith(b"-NOAUTH"), command
            for credentials in (b"default ", b"worker ", b"default default"):
                await stranger.send(b"AUTH " + credentials + b"\r\n")
                assert (await stranger.receive()).startswith((b"-WRONGPASS", b"-ERR")), credentials

    async def test_a_file_without_passwords_lets_nobody_in(
        self, binary: str | None, tmp_path: Path
    ) -> None:
        fresh = tmp_path / "fresh"
        fresh.mkdir()
        async with guarded(fresh, binary=binary) as guard:
            (fresh / "users.acl").write_text((FOLDER / "users.acl").read_text())
            async with guard.client(ADMIN) as admin:
                await admin.execute_command("ACL LOAD")
            for user in ("orchestrator", "worker", "observer", "default", ADMIN):
                for secret in ("0" * 64, "%230" + "0" * 63, user, quote(password(user), safe="")):
                    url = f"redis://{user}:{secret}@127.0.0.1:{guard.port}"
                    with pytest.raises(ReplyError, match="WRONGPASS"):
                        async with guard.link(url):
                            pass
