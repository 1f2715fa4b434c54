"""The same fleet on a Cluster, behind Sentinel, over TLS."""

import shutil
import signal
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import pytest
import trustme
from redis.asyncio import Redis, from_url
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from tests.harness.fleet import HANG_S, Orchestrator, serving, worker_process
from tests.harness.topologies import free_port, replicates, start_sentinels, watch_lines
from voicefleet.embedded_server import EmbeddedServer, ServerTls, bundled_binary

pytestmark = pytest.mark.anyio

TEXT = "One two three four five six seven. Eight nine ten eleven twelve. Thirteen fourteen."


class TestCluster:
    @pytest.fixture
    def fleet(self, cluster: RedisCluster, prefix: str) -> Orchestrator:
        return Orchestrator(cluster, prefix)  # type: ignore[arg-type]

    async def test_sessions_of_every_slot_are_spoken(
        self, fleet: Orchestrator, cluster_url: str, prefix: str
    ) -> None:
        async with serving(cluster_url, prefix, slots=16):
            sessions = [f"s{index}" for index in range(12)]
            for session in sessions:
                await fleet.add(session, TEXT, seed=1, lead_ms=0)
            turns = [await fleet.hear(session) for session in sessions]
            assert len({turn.pcm for turn in turns}) == 1
            nodes = {
                fleet.redis.get_node_from_key(fleet.keys.audio(session)).port
                for session in sessions
            }
            assert len(nodes) == 3
            await fleet.settled()

    async def test_control_streamed_text_and_order(
        self, fleet: Orchestrator, cluster_url: str, prefix: str
    ) -> None:
        async with serving(cluster_url, prefix):
            for session in ("a", "b", "c", "d"):
                await fleet.add(session, request="r1", stream=1)
                await fleet.write(session, "r1", text=TEXT)
                await fleet.add(session, "Go.", request="r2", lead_ms=0)
                await fleet.hear(session, until=10)
                await fleet.control(session, "stop:r1")
                turns = await fleet.turns(session, 2)
                assert [turn.end.reason for turn in turns] == ["stopped", "completed"]

    async def test_a_killed_worker_is_taken_over(
        self, fleet: Orchestrator, cluster_url: str
    ) -> None:
        async with (
            worker_process(fleet, cluster_url, "a") as a,
            worker_process(fleet, cluster_url, "b") as b,
        ):
            await fleet.add("calm", TEXT, seed=11, lead_ms=0)
            calm = await fleet.hear("calm")
            await fleet.add("s", TEXT, seed=11)
            await fleet.hear("s", until=60)
            victim = a if (await fleet.state("s"))["worker"] == "a" else b
            victim.signal(signal.SIGKILL)
            assert (await fleet.hear("s")).pcm == calm.pcm


class TestSentinel:
    @pytest.fixture
    async def servers(
        self, tmp_path: Path
    ) -> AsyncGenerator[tuple[EmbeddedServer, EmbeddedServer, str]]:
        """A primary, its replica, and the URL of the Sentinel that watches them."""
        async with (
            EmbeddedServer.start() as primary,
            EmbeddedServer.start(config=[f"replicaof 127.0.0.1 {primary.port}"]) as replica,
        ):
            async with from_url(replica.url) as redis:
                await replicates(redis)
            port = free_port()
            lines = [f"port {port}", *watch_lines("fleet", primary.port)]
            with start_sentinels(str(bundled_binary()), {port: lines}, tmp_path, "fleet"):
                yield primary, replica, f"redis+sentinel://127.0.0.1:{port}/fleet"

    async def test_a_failover_is_a_pause(
        self, servers: tuple[EmbeddedServer, EmbeddedServer, str]
    ) -> None:
        primary, replica, url = servers
        retry = Retry(ConstantBackoff(0.05), 200)
        async with from_url(primary.url) as first, from_url(replica.url, retry=retry) as second:
            before, after = Orchestrator(first, "tts"), Orchestrator(second, "tts")
            async with serving(url, "tts"):
                await before.add("calm", TEXT, seed=11, lead_ms=0)
                calm = await before.hear("calm")
                await before.add("s", TEXT, seed=11)
                await before.hear("s", until=60)
                await primary.kill()
                heard = await after.hear("s")
                assert heard.end.reason == "completed"
                assert heard.pcm == calm.pcm
                await after.add("next", "Go on.", lead_ms=0)
                assert (await after.hear("next")).end.reason == "completed"

    async def test_a_turn_that_a_failover_forgot_keeps_its_number(
        self, servers: tuple[EmbeddedServer, EmbeddedServer, str]
    ) -> None:
        """The new primary knows nothing of it, and is asked for another one at once."""
        primary, replica, url = servers
        retry = Retry(ConstantBackoff(0.05), 200)
        async with from_url(primary.url) as first, from_url(replica.url, retry=retry) as second:
            before, after = Orchestrator(first, "tts"), Orchestrator(second, "tts")
            async with serving(url, "tts", name="w1"), serving(url, "tts", name="w2"):
                await before.add("calm", TEXT, seed=11, lead_ms=0)
                calm = await before.hear("calm")
                await second.config_set("masterauth", "wrong")
                await second.config_set("masteruser", "nobody")
                await first.execute_command("CLIENT", "KILL", "TYPE", "replica")
                await before.add("s", TEXT, request="r1", seed=11)
                await before.hear("s", until=60)
                await primary.kill()
                with anyio.fail_after(HANG_S):
                    while (await second.info("replication"))["role"] != "master":
                        await anyio.sleep(0.02)
                await after.add("s", "Go on.", request="r2", lead_ms=0)
                spoken, other = await after.turns("s", 2)
                assert (spoken.end.request, other.end.request) == ("r1", "r2")
                assert spoken.pcm == calm.pcm


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncGenerator[tuple[EmbeddedServer, trustme.CA]]:
    """A server that speaks TLS alone, and asks for a password."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("the bundled Valkey is built without TLS, and there is no redis-server")
    ca = trustme.CA()
    issued = ca.issue_cert("127.0.0.1", "localhost")
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    for blob in issued.cert_chain_pems:
        blob.write_to_path(str(tmp_path / "cert.pem"), append=True)
    tls = ServerTls(ca=tmp_path / "ca.pem", cert=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    async with EmbeddedServer.start(binary=binary, tls=tls, password="let me in") as server:
        yield server, ca


async def test_tls_with_a_password_from_a_file(
    guarded: tuple[EmbeddedServer, trustme.CA], tmp_path: Path
) -> None:
    server, _ = guarded
    secret = tmp_path / "password"
    secret.write_text("let me in\n")
    url = f"rediss://127.0.0.1:{server.port}"
    redis = Redis(
        host="127.0.0.1",
        port=server.port,
        password="let me in",
        ssl=True,
        ssl_ca_certs=str(tmp_path / "ca.pem"),
    )
    async with redis:
        fleet = Orchestrator(redis, "tts")
        async with worker_process(
            fleet,
            url,
            "w1",
            f"redis.password_file={secret}",
            f"redis.tls_ca_file={tmp_path / 'ca.pem'}",
        ):
            await fleet.add("s", TEXT, lead_ms=0)
            assert (await fleet.hear("s")).end.reason == "completed"
            await fleet.control("s", "stop")
            await fleet.add("s", TEXT)
            assert (await fleet.hear("s", 2)).end.reason == "stopped"
