"""The users of ``deploy/redis`` on a Cluster, behind Sentinel, for tenants and other prefixes."""

import re
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from tests.harness import working_day
from tests.harness.acl import (
    ADMIN,
    FOLDER,
    Guarded,
    guarded,
    password,
    refusals,
    with_user,
    write_acl,
)
from tests.harness.fleet import Orchestrator, serving, worker_process
from tests.harness.topologies import (
    cluster_url,
    free_port,
    replicates,
    start_cluster,
    start_sentinels,
    watch_lines,
)
from voicefleet import VoiceFleet
from voicefleet.embedded_server import EmbeddedServer
from voicefleet.wire.link import ReplyError

pytestmark = pytest.mark.anyio

TEXT = working_day.TEXT


@pytest.mark.matrix
@pytest.mark.cluster
async def test_a_fleet_on_a_cluster(binary: str | None, tmp_path: Path) -> None:
    acl = write_acl(tmp_path, "users.acl")
    access = {"username": ADMIN, "password": password(ADMIN)}
    with start_cluster(3, access, binary=binary, config=(f"aclfile {acl}",)) as nodes:
        url = cluster_url(nodes)
        redis = RedisCluster(
            startup_nodes=[ClusterNode("127.0.0.1", nodes[0].port)],
            username="orchestrator",
            password=password("orchestrator"),
        )
        async with redis:
            fleet = Orchestrator(redis, "tts")  # type: ignore[arg-type]
            async with worker_process(fleet, with_user(url, "worker"), "w1") as worker:
                for session in ("a", "b", "c", "d"):
                    await fleet.add(session, request="r1", stream=1)
                    await fleet.write(session, "r1", text=TEXT)
                    await fleet.add(session, "Go.", request="r2", lead_ms=0)
                    await fleet.hear(session, until=10)
                    await fleet.control(session, "stop:r1")
                    turns = await fleet.turns(session, 2)
                    assert [turn.end.reason for turn in turns] == ["stopped", "completed"]
                worker.signal(signal.SIGTERM)
                assert await worker.exited() == 0
            await working_day.the_python_client(
                with_user(url, "orchestrator"), with_user(url, "worker"), "tts"
            )
        for node in nodes:
            async with Guarded(node.url).client(ADMIN) as admin:
                assert refusals(await admin.acl_log()) == []


@pytest.mark.matrix
async def test_a_failover_behind_sentinels(binary: str | None, tmp_path: Path) -> None:
    """Two Sentinels, which know each other and their clients by users of their own."""
    acl, sentinel_acl = (tmp_path / name for name in ("data", "watch"))
    acl.mkdir()
    sentinel_acl.mkdir()
    lines = (
        f"aclfile {write_acl(acl, 'users.acl', 'replication.acl')}",
        "masteruser replica",
        f'masterauth "{password("replica")}"',
    )
    users = write_acl(sentinel_acl, "sentinel.acl")
    async with EmbeddedServer.start(binary=binary, config=lines) as primary:
        follows = f"replicaof 127.0.0.1 {primary.port}"
        async with EmbeddedServer.start(binary=binary, config=(*lines, follows)) as replica:
            first, second = Guarded(primary.url), Guarded(replica.url)
            ports = [free_port(), free_port()]
            config = {port: _sentinel_lines(port, primary.port, users) for port in ports}
            access = {"username": "fleet", "password": password("fleet")}
            program = str(EmbeddedServer(binary=binary)._binary)  # pyright: ignore[reportPrivateUsage]
            with start_sentinels(program, config, tmp_path, "voices", access):
                watching = [f"redis://127.0.0.1:{port}" for port in ports]
                url = "redis+sentinel://" + ",".join(f"127.0.0.1:{port}" for port in ports)
                url = with_user(f"{url}/voices", "worker")
                await _speak_through_a_failover(first, second, url, primary.kill)
                for guard in (second, *map(Guarded, watching)):
                    assert await guard.refusals() == []


async def _speak_through_a_failover(
    first: Guarded, second: Guarded, url: str, fail: Callable[[], Awaitable[None]]
) -> None:
    retry = Retry(ConstantBackoff(0.05), 200)
    flags = (
        "redis.sentinel_username=fleet",
        f"redis.sentinel_password={password('fleet')}",
    )

    async def fail_unrefused() -> None:
        assert await first.refusals() == []
        await fail()

    async with (
        first.client("orchestrator") as before_redis,
        second.client("orchestrator", retry=retry) as after_redis,
    ):
        before, after = Orchestrator(before_redis, "tts"), Orchestrator(after_redis, "tts")
        async with second.client(ADMIN) as admin:
            await replicates(admin)
        async with worker_process(before, url, "w1", *flags):
            await working_day.a_failover(before, after, fail_unrefused)


def _sentinel_lines(port: int, primary: int, users: Path) -> list[str]:
    return [
        f"port {port}",
        f"aclfile {users}",
        "sentinel sentinel-user peer",
        f'sentinel sentinel-pass "{password("peer")}"',
        *watch_lines("voices", primary, quorum=2),
        "sentinel auth-user voices sentinel",
        f'sentinel auth-pass voices "{password("sentinel")}"',
    ]


@pytest.mark.matrix
class TestTenant:
    """``tenant.acl``: an orchestrator of the sessions ``acme:*`` alone."""

    async def test_its_own_sessions_are_spoken(self, binary: str | None, tmp_path: Path) -> None:
        files = ("users.acl", "tenant.acl")
        async with guarded(tmp_path, binary=binary, files=files) as guard:
            async with serving(guard.url("worker"), "tts"), VoiceFleet(guard.url("acme")) as fleet:
                session = fleet.session("acme:1", model="tone-test")
                assert (await session.speak(TEXT, lead_ms=0)).reason == "completed"
                async with session.stream(lead_ms=0) as turn:
                    await turn.write("Some words.")
                    await turn.end_text()
                    assert (await turn).reason == "completed"
                await session.pause()
                assert (await fleet.capacity("tone-test")).workers == 1
            assert await guard.refusals() == []

    async def test_sessions_of_others_are_out_of_its_reach(
        self, binary: str | None, tmp_path: Path
    ) -> None:
        files = ("users.acl", "tenant.acl")
        async with (
            guarded(tmp_path, binary=binary, files=files) as guard,
            guard.link(guard.url("acme")) as link,
        ):
            for other in ("{s}", "{acmes:1}", "{umbrella:acme:1}", "{x}{acme:1}", "acme:1"):
                for command in (
                    ("SET", f"tts:control:{other}", "stop"),
                    ("GET", f"tts:control:{other}"),
                    ("XADD", f"tts:text:{other}:r", "*", "text", "x"),
                    ("XRANGE", f"tts:text:{other}:r", "-", "+"),
                    ("XREAD", "STREAMS", f"tts:audio:{other}", "0"),
                    ("XREAD", "STREAMS", "tts:audio:{acme:1}", f"tts:audio:{other}", "0", "0"),
                    ("HGETALL", f"tts:session:{other}"),
                ):
                    with pytest.raises(ReplyError, match="NOPERM"):
                        await link.call(*command)
            for command in (("SCAN", 0), ("XRANGE", "tts:dead", "-", "+"), ("INFO",)):
                with pytest.raises(ReplyError, match="NOPERM"):
                    await link.call(*command)

    async def test_what_it_cannot_be_kept_from(self, binary: str | None, tmp_path: Path) -> None:
        """A queue that is shared takes requests for any session: SECURITY.md says so."""
        files = ("users.acl", "tenant.acl")
        async with (
            guarded(tmp_path, binary=binary, files=files) as guard,
            guard.client("acme") as redis,
            guard.client("orchestrator") as victim,
        ):
            await Orchestrator(redis, "tts").add("other:1", "Not mine.", lead_ms=0)
            async with serving(guard.url("worker"), "tts"):
                heard = await Orchestrator(victim, "tts").hear("other:1")
                assert heard.end.reason == "completed"


async def test_another_prefix(tmp_path: Path) -> None:
    """As the README beside the files says: ``sed``."""
    readme = (FOLDER / "README.md").read_text()
    found = re.search(r"sed '(s/[^']+)' users\.acl", readme)
    assert found is not None
    expression = found[1].split("/")
    path = write_acl(tmp_path, "users.acl")
    text = path.read_text()
    assert expression[0] == "s" and expression[1:] == ["~tts:", "~voices:", "g"]
    path.write_text(text.replace("~tts:", "~voices:"))
    async with EmbeddedServer.start(config=[f"aclfile {path}"]) as server:
        guard = Guarded(server.url)
        await working_day.the_python_client(
            guard.url("orchestrator"), guard.url("worker"), "voices"
        )
        assert await guard.refusals() == []
        async with guard.link(guard.url("orchestrator")) as link:
            with pytest.raises(ReplyError, match="NOPERM"):
                await link.call("SET", "tts:control:{s}", "stop")
