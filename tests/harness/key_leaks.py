"""Finds keys without a TTL that a test left behind.

The protocol names what may stay without a TTL: the request streams, the sorted set of workers and
the stream of dead requests. Every other key the fleet writes has one. Keys that the test wrote in
the orchestrator's place (control, text) are its own to name, with ``allow``.
"""

from fnmatch import fnmatchcase
from typing import Any

import redis
from redis.cluster import ClusterNode, RedisCluster

from voicefleet.wire.endpoint import RedisConfig, resolve

NO_TTL = -1


class KeyLeaks:
    """Checks the keys under one test's prefix, on every server that the test uses."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._allowed = [f"{prefix}:requests:*", f"{prefix}:workers", f"{prefix}:dead"]
        self._urls: list[str] = []

    def allow(self, *patterns: str) -> None:
        """Permit keys without a TTL whose names match (``fnmatch``)."""
        self._allowed += patterns

    def watch(self, url: str) -> None:
        """Check this server, too."""
        self._urls.append(url)

    def sweep(self) -> list[str]:
        """Delete the test's keys; returns those that should have had a TTL."""
        leaked: list[str] = []
        for url in self._urls:
            with _connect(url) as client:
                for raw in list(client.scan_iter(match=f"{self.prefix}*", count=1000)):
                    key = raw.decode()
                    allowed = any(fnmatchcase(key, pattern) for pattern in self._allowed)
                    if client.ttl(raw) == NO_TTL and not allowed:
                        leaked.append(f"{key} ({client.type(raw).decode()})")
                    client.delete(raw)
        return sorted(leaked)


def _connect(url: str) -> Any:
    endpoint = resolve(RedisConfig(url=url))
    if endpoint.topology == "cluster":
        return RedisCluster(startup_nodes=[ClusterNode(*seed) for seed in endpoint.seeds])
    return redis.Redis.from_url(url)
