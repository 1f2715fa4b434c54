"""Clusters and Sentinels on loopback, with users or TLS where a test asks for them."""

import socket
import subprocess
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
import redis

from voicefleet.embedded_server import HOST, EmbeddedServer, ServerTls

SLOTS = 16384
START_S = 20.0


@contextmanager
def start_cluster(
    size: int = 3,
    access: dict[str, Any] | None = None,
    *,
    binary: str | None = None,
    config: tuple[str, ...] = (),
    tls: ServerTls | None = None,
) -> Generator[tuple[EmbeddedServer, ...]]:
    """Start a Cluster of ``size`` primaries that share the slots evenly.

    ``access`` is what a client needs to administer one: credentials, certificates.
    """
    access = access or {}
    lines = ("cluster-node-timeout 2000", *config)
    with ExitStack() as stack:
        nodes = tuple(
            stack.enter_context(
                EmbeddedServer.start_blocking(binary=binary, cluster=True, config=lines, tls=tls)
            )
            for _ in range(size)
        )
        clients: list[Any] = [
            stack.enter_context(
                redis.Redis(host=HOST, port=node.port, decode_responses=True, **access)
            )
            for node in nodes
        ]
        for index, client in enumerate(clients):
            first, last = index * SLOTS // size, (index + 1) * SLOTS // size - 1
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", index + 1)
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
        for node in nodes[1:]:
            clients[0].execute_command("CLUSTER MEET", HOST, node.port, node.bus_port)
        whole = {"cluster_state": "ok", "cluster_slots_ok": str(SLOTS), "cluster_size": str(size)}
        for _ in _patiently(f"no Cluster of {size} nodes"):
            if all(whole.items() <= client.cluster("INFO").items() for client in clients):
                break
        yield nodes


def cluster_url(nodes: tuple[EmbeddedServer, ...], scheme: str = "redis") -> str:
    """The URL of a Cluster."""
    return f"{scheme}+cluster://" + ",".join(f"{HOST}:{node.port}" for node in nodes)


def watch_lines(name: str, primary: int, *, quorum: int = 1) -> list[str]:
    """The lines by which a Sentinel watches a primary, given by its port."""
    return [
        f"sentinel monitor {name} {HOST} {primary} {quorum}",
        f"sentinel down-after-milliseconds {name} 500",
        f"sentinel failover-timeout {name} 3000",
    ]


@contextmanager
def start_sentinels(
    binary: str,
    config: dict[int, list[str]],
    directory: Path,
    name: str,
    access: dict[str, Any] | None = None,
) -> Generator[None]:
    """Start Sentinels and wait until each knows a replica and the others.

    ``config`` has each one's port and the lines of its file; ``access`` is what a client needs to
    ask one.
    """
    with ExitStack() as stack:
        for port, lines in config.items():
            file = directory / f"sentinel-{port}.conf"
            file.write_text("\n".join([f"bind {HOST}", f"dir {directory}", *lines]) + "\n")
            process = subprocess.Popen([binary, str(file), "--sentinel"], stdout=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
        for port in config:
            client: Any = stack.enter_context(
                redis.Redis(host=HOST, port=port, decode_responses=True, **(access or {}))
            )
            for _ in _patiently("the Sentinels did not find a replica and each other"):
                try:
                    replicas = client.execute_command("SENTINEL", "REPLICAS", name)
                    others = client.execute_command("SENTINEL", "SENTINELS", name)
                except redis.RedisError:
                    continue
                if replicas and len(others) == len(config) - 1:
                    break
        yield


async def replicates(replica: Any) -> None:
    """Wait until the replica that this client is connected to has copied its primary."""
    with anyio.fail_after(START_S):
        while (await replica.info("replication"))["master_link_status"] != "up":
            await anyio.sleep(0.05)


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _patiently(problem: str) -> Iterator[None]:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        yield
        time.sleep(0.05)
    raise TimeoutError(f"{problem} within {START_S:.0f} s")
