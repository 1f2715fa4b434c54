"""TLS and mutual TLS: who has the right certificates is served, and nobody else."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import msgspec
import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from tests.harness import tls, working_day
from tests.harness.fleet import HANG_S, ROOT, Orchestrator, worker_process
from tests.harness.tls import Authority
from tests.harness.topologies import (
    cluster_url,
    free_port,
    replicates,
    start_cluster,
    start_sentinels,
    watch_lines,
)
from voicefleet import ServerUnreachable, VoiceFleet
from voicefleet.embedded_server import EmbeddedServer, ServerTls
from voicefleet.wire.connect import connect
from voicefleet.wire.endpoint import RedisConfig, resolve
from voicefleet.wire.link import Link, LinkClosedError

pytestmark = pytest.mark.anyio

TEXT = working_day.TEXT


class Parties(msgspec.Struct, frozen=True):
    """Who has which certificate."""

    ours: Authority
    theirs: Authority
    server: ServerTls
    client: ServerTls


@pytest.fixture
def parties(tmp_path: Path) -> Parties:
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    return Parties(ours, theirs, ours.issue("server"), ours.issue("client", "client.example"))


@pytest.fixture
async def server(parties: Parties) -> AsyncGenerator[EmbeddedServer]:
    async with tls.mutual(parties.server) as server:
        yield server


def flags(files: ServerTls) -> list[str]:
    return [f"redis.{name}={value}" for name, value in tls.settings(files).items()]


async def test_a_fleet_with_certificates(server: EmbeddedServer, parties: Parties) -> None:
    url = f"rediss://127.0.0.1:{server.port}"
    async with Redis(port=server.port, **tls.access(parties.client)) as redis:
        fleet = Orchestrator(redis, "tts")
        async with (
            worker_process(fleet, url, "w1", *flags(parties.client)) as worker,
            VoiceFleet(RedisConfig(url=url, **tls.settings(parties.client))) as client,
        ):
            session = client.session("s", model="tone-test")
            assert (await session.speak(TEXT, lead_ms=0)).reason == "completed"
            turn = await session.speak(TEXT).send()
            await fleet.hear("s", 2, until=10)
            await session.stop()
            assert (await turn).reason == "stopped"
            worker.signal(signal.SIGTERM)
            assert await worker.exited() == 0


async def test_the_command_line_takes_certificates_from_the_environment(
    server: EmbeddedServer, parties: Parties
) -> None:
    environ = {f"VOICEFLEET_REDIS_{k.upper()}": v for k, v in tls.settings(parties.client).items()}
    done = await anyio.run_process(
        [sys.executable, "-m", "voicefleet", "doctor"],
        env={**os.environ, **environ, "VOICEFLEET_REDIS_URL": f"rediss://127.0.0.1:{server.port}"},
        cwd=ROOT,
        check=False,
    )
    said = done.stdout.decode()
    failed = [line for line in said.splitlines() if line.startswith("fail")]
    assert (done.returncode, failed) == (1, ["fail no worker is ready: requests wait"]), said
    assert "may do all" in said and "a change arrives after" in said


class Case(msgspec.Struct, frozen=True):
    """A meeting that must fail: the server's certificate, the client's settings, what is said."""

    server: ServerTls
    client: dict[str, str]
    said: str


def case(name: str, parties: Parties) -> Case:
    ours, good = parties.ours, tls.settings(parties.client)
    trusting = {"tls_ca_file": good["tls_ca_file"]}
    match name:
        case "a server of another authority":
            return Case(parties.theirs.issue("server"), good, "CERTIFICATE_VERIFY_FAILED")
        case "no authority of ours":
            client = {k: v for k, v in good.items() if k != "tls_ca_file"}
            return Case(parties.server, client, "CERTIFICATE_VERIFY_FAILED")
        case "another host's certificate":
            return Case(ours.issue("other", "other.example"), good, "IP address mismatch")
        case "an expired certificate":
            return Case(ours.issue("old", expired=True), good, "certificate has expired")
        case "no client certificate":
            return Case(parties.server, trusting, "certificate required|lost|closed|reset")
        case "a client of another authority":
            stranger = tls.settings(parties.theirs.issue("client", "client.example"))
            return Case(parties.server, stranger | trusting, "unknown ca|lost|closed|reset")
        case "an expired client certificate":
            old = tls.settings(ours.issue("old client", "client.example", expired=True))
            return Case(parties.server, old, "expired|lost|closed|reset")
        case _:
            raise AssertionError(name)


CASES = (
    "a server of another authority",
    "no authority of ours",
    "another host's certificate",
    "an expired certificate",
    "no client certificate",
    "a client of another authority",
    "an expired client certificate",
)


@pytest.mark.parametrize("name", CASES)
async def test_who_has_not_the_right_certificate_is_refused(name: str, parties: Parties) -> None:
    """By each of our two ways to connect, and by the client."""
    wrong = case(name, parties)
    async with tls.mutual(wrong.server) as server:
        config = RedisConfig(url=f"rediss://127.0.0.1:{server.port}", **wrong.client)
        endpoint = resolve(config)
        with pytest.raises(LinkClosedError, match=f"(?i){wrong.said}"):
            await Link.open(endpoint.seeds[0], endpoint)
        with pytest.raises(LinkClosedError, match=f"(?i){wrong.said}"):
            async with connect(endpoint):
                pass
        with pytest.raises(ServerUnreachable):
            async with VoiceFleet(config):
                pass


@pytest.mark.parametrize("name", [CASES[0], CASES[2], CASES[4]])
async def test_a_worker_says_what_is_wrong_and_tries_again(name: str, parties: Parties) -> None:
    """Certificates are renewed while workers run: what is wrong now may pass."""
    wrong = case(name, parties)
    async with tls.mutual(wrong.server) as server:
        url = f"rediss://127.0.0.1:{server.port}"
        settings = [f"--set=redis.{key}={value}" for key, value in wrong.client.items()]
        process = await _worker("--redis-url", url, *settings)
        try:
            assert process.stderr is not None
            lines: list[str] = []
            with anyio.fail_after(HANG_S):
                async for chunk in process.stderr:
                    lines = "".join([*lines, chunk.decode()]).splitlines(keepends=True)
                    if len(lines) >= 2:
                        break
            assert process.returncode is None
        finally:
            process.kill()
            await process.aclose()
        said = lines[0]
        assert "redis_away" in said and f"127.0.0.1:{server.port}" in said
        assert re.search(f"(?i){wrong.said}", said)
        assert "Traceback" not in "".join(lines)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("tls_ca_file=/no/such.pem", "No such file"),
        ("tls_cert_file=/no/such.pem", "No such file"),
        ("tls_ca_file=README.md", ""),
    ],
)
async def test_a_worker_without_its_files_ends(
    server: EmbeddedServer, setting: str, said: str
) -> None:
    url = f"rediss://127.0.0.1:{server.port}"
    process = await _worker("--redis-url", url, f"--set=redis.{setting}")
    with anyio.fail_after(HANG_S):
        assert process.stderr is not None
        lines = b"".join([chunk async for chunk in process.stderr]).decode()
        assert await process.wait() == 1
    assert lines.startswith("voicefleet: ") and lines.count("\n") == 1 and said in lines


async def test_a_plain_client_and_a_tls_server_do_not_meet(
    server: EmbeddedServer, parties: Parties
) -> None:
    with pytest.raises(ServerUnreachable):
        async with VoiceFleet(f"redis://127.0.0.1:{server.port}"):
            pass
    async with EmbeddedServer.start() as plain:
        url = f"rediss://127.0.0.1:{plain.port}"
        with pytest.raises(ServerUnreachable):
            async with VoiceFleet(
                RedisConfig(url=url, connect_timeout_s=0.5, **tls.settings(parties.client))
            ):
                pass


async def _worker(*args: str) -> anyio.abc.Process:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("VOICEFLEET_")}
    command = [sys.executable, "-m", "voicefleet", "worker", "--config", "configs/tone.yaml"]
    return await anyio.open_process(
        [*command, *args], cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


@pytest.mark.cluster
async def test_a_cluster_with_certificates(parties: Parties) -> None:
    config = (*tls.MUTUAL, "tls-cluster yes", "tls-replication yes")
    with start_cluster(
        3, tls.access(parties.client), binary=tls.binary(), config=config, tls=parties.server
    ) as nodes:
        url = cluster_url(nodes, "rediss")
        seeds = [ClusterNode("127.0.0.1", nodes[0].port)]
        async with RedisCluster(startup_nodes=seeds, **tls.access(parties.client)) as redis:
            fleet = Orchestrator(redis, "tts")  # type: ignore[arg-type]
            async with (
                worker_process(fleet, url, "w1", *flags(parties.client)),
                VoiceFleet(RedisConfig(url=url, **tls.settings(parties.client))) as client,
            ):
                for session in ("a", "b", "c", "d"):
                    turn = await client.session(session).speak(TEXT, model="tone-test", lead_ms=0)
                    assert turn.reason == "completed"
        with pytest.raises(ServerUnreachable):
            async with VoiceFleet(
                RedisConfig(url=url, tls_ca_file=str(parties.client.ca))  # no certificate
            ):
                pass


async def test_a_failover_with_certificates(parties: Parties, tmp_path: Path) -> None:
    """The Sentinel too speaks TLS alone, and wants a certificate."""
    lines = (*tls.MUTUAL, "tls-replication yes")
    async with EmbeddedServer.start(
        binary=tls.binary(), tls=parties.server, config=lines
    ) as primary:
        follow = (*lines, f"replicaof 127.0.0.1 {primary.port}")
        async with EmbeddedServer.start(
            binary=tls.binary(), tls=parties.server, config=follow
        ) as replica:
            port = free_port()
            config = {port: _sentinel_lines(port, primary.port, parties.server)}
            access = tls.access(parties.client)
            with start_sentinels(tls.binary(), config, tmp_path, "voices", access):
                url = f"rediss+sentinel://127.0.0.1:{port}/voices"
                await _speak_through_a_failover(primary, replica, url, parties.client)


def _sentinel_lines(port: int, primary: int, files: ServerTls) -> list[str]:
    return [
        "port 0",
        f"tls-port {port}",
        f"tls-ca-cert-file {files.ca}",
        f"tls-cert-file {files.cert}",
        f"tls-key-file {files.key}",
        "tls-replication yes",
        *tls.MUTUAL,
        *watch_lines("voices", primary),
    ]


async def _speak_through_a_failover(
    primary: EmbeddedServer, replica: EmbeddedServer, url: str, files: ServerTls
) -> None:
    retry = Retry(ConstantBackoff(0.05), 200)
    access = tls.access(files)
    async with (
        Redis(port=primary.port, **access) as first,
        Redis(port=replica.port, retry=retry, **access) as second,
    ):
        before, after = Orchestrator(first, "tts"), Orchestrator(second, "tts")
        await replicates(second)
        async with worker_process(before, url, "w1", *flags(files)):
            await working_day.a_failover(before, after, primary.kill)
