"""Connects to an endpoint, in every topology.

``client`` is redis-py's client, for ordinary commands. ``Topology`` also knows which server owns a
key, for those who keep connections of their own (``wire.link``).
"""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, cast

from redis.asyncio import Redis, Sentinel
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import AuthenticationError, RedisError

from voicefleet.wire.endpoint import Endpoint
from voicefleet.wire.greeting import greet
from voicefleet.wire.link import Link, LinkClosedError, Reply

Address = tuple[str, int]
Client: TypeAlias = Redis | RedisCluster


def _options(endpoint: Endpoint) -> dict[str, Any]:
    options: dict[str, Any] = {
        "username": endpoint.username,
        "password": endpoint.password,
        "socket_timeout": endpoint.timeout_s,
        "socket_connect_timeout": endpoint.connect_timeout_s,
        "protocol": 3,
        "client_name": "voicefleet",
        # After a lost reply the retried command may run twice: all that is sent through this
        # client may.
        "retry": Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.3), 3),
    }
    if endpoint.tls is not None and endpoint.tls_files is not None:
        files = endpoint.tls_files
        options |= {
            "ssl": True,
            "ssl_ca_certs": files.ca,
            "ssl_certfile": files.cert,
            "ssl_keyfile": files.key,
            "ssl_cert_reqs": "required" if files.verify else "none",
            "ssl_check_hostname": files.verify,
        }
    return options


def _sentinel(endpoint: Endpoint) -> Sentinel:
    tls = {k: v for k, v in _options(endpoint).items() if k.startswith("ssl")}
    return Sentinel(
        list(endpoint.seeds),
        sentinel_kwargs={
            "username": endpoint.sentinel_username,
            "password": endpoint.sentinel_password,
            "socket_timeout": endpoint.timeout_s,
            "socket_connect_timeout": endpoint.connect_timeout_s,
            **tls,
        },
    )


def client(endpoint: Endpoint) -> Client:
    """redis-py's client for the endpoint: bytes in and out, RESP3, bounded retries.

    It connects on first use. Close it with ``aclose()``.
    """
    options = _options(endpoint)
    if endpoint.topology == "cluster":
        seeds = [ClusterNode(host, port) for host, port in endpoint.seeds]
        del options["retry"]  # the cluster client re-routes and retries by itself
        return RedisCluster(startup_nodes=seeds, **options)
    if endpoint.topology == "sentinel":
        sentinel = _sentinel(endpoint)
        return sentinel.master_for(endpoint.service, db=endpoint.db, **options)
    host, port = endpoint.seeds[0]
    return Redis(host=host, port=port, db=endpoint.db, **options)


class Topology:
    """Knows which server owns a key now. Made by ``connect``."""

    def __init__(self, endpoint: Endpoint, client: Client) -> None:
        self.endpoint = endpoint
        self.client = client
        self._primary: Address = endpoint.seeds[0]
        self._leads_since: dict[Address, float] | None = None

    @property
    def is_sharded(self) -> bool:
        """Whether keys of different slots may lie on different servers."""
        return isinstance(self.client, RedisCluster)

    def owner(self, key: str) -> Address:
        """The primary that serves ``key``, as of the last refresh."""
        if isinstance(self.client, RedisCluster):
            node = self.client.get_node_from_key(key)
            if node is None:
                return self._primary
            return str(node.host), int(node.port)
        return self._primary

    def leads_since(self, key: str) -> float:
        """When the server that owns ``key`` was first seen as a primary, on ``time.monotonic()``.

        0 if it was one from the beginning.
        """
        return (self._leads_since or {}).get(self.owner(key), 0.0)

    async def refresh(self) -> None:
        """Find out again who the primaries are, after an error that says they moved.

        Raises:
            LinkClosedError: No server or Sentinel answers.
        """
        await self._refresh()
        known, now = self._leads_since, time.monotonic()
        if isinstance(self.client, RedisCluster):
            nodes = [(str(node.host), int(node.port)) for node in self.client.get_primaries()]
        else:
            nodes = [self._primary]
        self._leads_since = {node: 0.0 if known is None else known.get(node, now) for node in nodes}

    async def _refresh(self) -> None:
        try:
            if isinstance(self.client, RedisCluster):
                await self.client.nodes_manager.initialize()
            elif self.endpoint.topology == "sentinel":
                sentinel = _sentinel(self.endpoint)
                try:
                    ask = cast(
                        Callable[[str], Awaitable[tuple[str, int]]], sentinel.discover_master
                    )
                    host, port = await ask(self.endpoint.service)
                finally:
                    for asked in sentinel.sentinels:
                        await asked.aclose()
                self._primary = (str(host), int(port))
        except MasterNotFoundError:
            raise LinkClosedError(
                f"{self.endpoint!r}: no Sentinel answers and knows this primary"
            ) from None
        except (RedisError, OSError) as error:
            raise LinkClosedError(f"{self.endpoint!r}: {error}") from None

    async def open_link(
        self,
        address: Address,
        on_push: Callable[[list[Reply]], None] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> Link:
        """Open a connection of the caller's own to one server. Raises as ``Link.open``."""
        return await Link.open(address, self.endpoint, on_push, on_lost)


@asynccontextmanager
async def connect(endpoint: Endpoint) -> AsyncGenerator[Topology]:
    """Connect to the endpoint; close on leaving the block.

    Raises:
        LinkClosedError: No server of the endpoint answers, or the server cannot be used.
        redis.exceptions.AuthenticationError: The server refuses the credentials.
    """
    redis = client(endpoint)
    topology = Topology(endpoint, redis)
    try:
        try:
            await greet(endpoint)
            if isinstance(redis, RedisCluster):
                await redis.initialize()
            await topology.refresh()
            await redis.ping()
        except (AuthenticationError, LinkClosedError):
            raise
        except (RedisError, OSError) as error:
            raise LinkClosedError(f"{endpoint!r}: {error}") from None
        yield topology
    finally:
        await redis.aclose()
