"""The Redis servers that tests run against, each started once, when the first test asks.

========== =====================================================================
backend    what it is
========== =====================================================================
valkey     the bundled Valkey; always there
redis      the ``redis-server`` on the PATH (Debian's, say)
external   ``VOICEFLEET_TEST_REDIS_URL``; only keys under the tests' own prefixes are touched
docker     ``VOICEFLEET_TEST_IMAGE`` (``redis:8``) where a Docker engine answers
========== =====================================================================
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Self, cast

import msgspec
import redis
from redis.exceptions import RedisError

from voicefleet.embedded_server import HOST, EmbeddedServer, bundled_binary

BACKENDS = ("valkey", "redis", "external", "docker")
SLOTS = 16384


class UnavailableError(Exception):
    """This backend is not to be had here; the message says why."""


def at_hand() -> list[str]:
    """The backends worth asking for, as far as a glance can tell."""
    found = {
        "valkey": True,
        "redis": shutil.which("redis-server") is not None,
        "external": "VOICEFLEET_TEST_REDIS_URL" in os.environ,
        "docker": _docker_answers(),
    }
    return [name for name in BACKENDS if found[name]]


class Cluster(msgspec.Struct, frozen=True):
    """A Cluster of primaries that share the slots evenly."""

    nodes: tuple[EmbeddedServer, ...]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in self.nodes)


@contextmanager
def start_cluster(size: int = 3, timeout_s: float = 20.0) -> Generator[Cluster]:
    """Start a Cluster of ``size`` processes and wait until every node knows every slot."""
    with ExitStack() as stack:
        nodes = tuple(
            stack.enter_context(
                EmbeddedServer.start_blocking(cluster=True, config=["cluster-node-timeout 2000"])
            )
            for _ in range(size)
        )
        clients = [
            stack.enter_context(redis.Redis(host=HOST, port=node.port, decode_responses=True))
            for node in nodes
        ]
        borders = [index * SLOTS // size for index in range(size + 1)]
        for index, client in enumerate(clients):
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", index + 1)
            client.execute_command("CLUSTER ADDSLOTSRANGE", borders[index], borders[index + 1] - 1)
        for node in nodes[1:]:
            clients[0].execute_command("CLUSTER MEET", HOST, node.port, node.bus_port)
        deadline = time.monotonic() + timeout_s
        while not all(_is_whole(client, size) for client in clients):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no Cluster of {size} nodes within {timeout_s} s")
            time.sleep(0.02)
        yield Cluster(nodes)


@contextmanager
def start_sentinel(
    primary: EmbeddedServer, name: str, directory: Path, timeout_s: float = 20.0
) -> Generator[str]:
    """Let one Sentinel watch a primary and its replicas; gives the URL to use."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    config = directory / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind {HOST}\nsentinel monitor {name} {HOST} {primary.port} 1\n"
        f"sentinel down-after-milliseconds {name} 500\nsentinel failover-timeout {name} 3000\n"
    )
    process = subprocess.Popen(
        [str(bundled_binary()), str(config), "--sentinel"], stdout=subprocess.DEVNULL
    )
    try:
        with redis.Redis(port=port, decode_responses=True) as client:
            deadline = time.monotonic() + timeout_s
            while True:
                try:
                    if client.execute_command("SENTINEL", "REPLICAS", name):
                        break
                except RedisError:
                    pass
                if time.monotonic() > deadline:
                    raise TimeoutError("the Sentinel found no replica")
                time.sleep(0.05)
        yield f"redis+sentinel://{HOST}:{port}/{name}"
    finally:
        process.kill()
        process.wait()


def _is_whole(client: "redis.Redis", size: int) -> bool:
    facts = cast(dict[str, str], client.cluster("INFO"))
    wanted = {"cluster_state": "ok", "cluster_slots_ok": str(SLOTS), "cluster_size": str(size)}
    return wanted.items() <= facts.items()


class Servers:
    """The servers of one test run: ``with Servers() as servers: servers.url("valkey")``."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._urls: dict[str, str] = {}
        self._cluster: Cluster | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def url(self, backend: str) -> str:
        """The backend's URL.

        Raises:
            UnavailableError: It is not to be had here.
        """
        if backend not in self._urls:
            self._urls[backend] = self._start(backend)
        return self._urls[backend]

    def cluster(self) -> Cluster:
        """The Cluster that all tests share."""
        if self._cluster is None:
            self._cluster = self._stack.enter_context(start_cluster())
        return self._cluster

    def _start(self, backend: str) -> str:
        if backend == "external":
            url = os.environ.get("VOICEFLEET_TEST_REDIS_URL")
            if not url:
                raise UnavailableError("VOICEFLEET_TEST_REDIS_URL is not set")
            return url
        if backend == "docker":
            return self._stack.enter_context(_container())
        binary = None
        if backend == "redis":
            binary = shutil.which("redis-server")
            if binary is None:
                raise UnavailableError("redis-server is not on the PATH")
        return self._stack.enter_context(EmbeddedServer.start_blocking(binary=binary)).url


@contextmanager
def _container() -> Generator[str]:
    image = os.environ.get("VOICEFLEET_TEST_IMAGE", "redis:8")
    container = _docker("run", "--detach", "--rm", "--publish", f"{HOST}::6379", image)
    try:
        url = f"redis://{_docker('port', container, '6379').splitlines()[0]}"
        with redis.Redis.from_url(url) as client:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                try:
                    client.ping()
                    break
                except RedisError:
                    time.sleep(0.05)
        yield url
    finally:
        _docker("rm", "--force", container)


@cache
def _docker_answers() -> bool:
    """Whether there is an engine behind the client."""
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0


def _docker(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["docker", *arguments], capture_output=True, text=True, timeout=300, check=True
        )
    except FileNotFoundError:
        raise UnavailableError("docker is not on the PATH") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or ["docker failed"]
        raise UnavailableError(said[0]) from None
    return done.stdout.strip()
