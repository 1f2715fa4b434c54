"""The commands that the client sends, typed. No other module of the client uses redis-py."""

from collections.abc import AsyncGenerator, Awaitable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self, cast

from redis.asyncio.cluster import RedisCluster

from voicefleet.producer.errors import translated
from voicefleet.wire.connect import Topology, connect
from voicefleet.wire.endpoint import Endpoint
from voicefleet.wire.link import Argument

StreamEntry = tuple[bytes, dict[bytes, bytes]]


class RedisClient:
    """Commands over redis-py, in every topology.

    Every method raises ``ServerUnreachable`` or ``ServerRefused`` where redis-py would raise. A
    command whose reply is lost is sent again a few times: send only commands that may run twice.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology

    @classmethod
    @asynccontextmanager
    async def open(cls, endpoint: Endpoint) -> AsyncGenerator[Self]:
        """Connect; close on leaving the block."""
        async with AsyncExitStack() as stack:
            with translated(endpoint):
                topology = await stack.enter_async_context(connect(endpoint))
            yield cls(topology)

    @property
    def endpoint(self) -> Endpoint:
        """The Redis it is connected to."""
        return self.topology.endpoint

    async def call(self, *command: Argument) -> Any:
        """Send one command; the reply is as redis-py parses it."""
        with translated(self.endpoint):
            return await cast(Awaitable[Any], self.topology.client.execute_command(*command))

    async def batch(self, commands: Iterable[tuple[Argument, ...]]) -> list[Any]:
        """Send several commands in one round trip (in a Cluster: one to each server)."""
        pipeline = cast(Any, self.topology.client).pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        with translated(self.endpoint):
            return await cast(Awaitable[list[Any]], pipeline.execute())

    async def add(self, key: str, entry: str, fields: Mapping[str, bytes]) -> bytes:
        """XADD."""
        return cast(bytes, await self.call("XADD", key, entry, *_flat(fields)))

    async def hash(self, key: str) -> dict[bytes, bytes]:
        """HGETALL; empty if the key is missing."""
        return cast(dict[bytes, bytes], await self.call("HGETALL", key))

    async def hashes(self, keys: list[str]) -> list[dict[bytes, bytes]]:
        """HGETALL of several keys."""
        return await self.batch([("HGETALL", key) for key in keys]) if keys else []

    async def set(self, key: str, value: str, *, ttl_s: int) -> None:
        """SET with a time to live."""
        await self.call("SET", key, value, "EX", ttl_s)

    async def info(self, section: str) -> dict[str, str | int]:
        """One section of INFO; in a Cluster that of any one server."""
        client = self.topology.client
        with translated(self.endpoint):
            if isinstance(client, RedisCluster):
                node = cast(Any, client).get_random_node()
                info = await cast(Any, client).execute_command("INFO", section, target_nodes=node)
                (info,) = info.values() if len(info) == 1 else (info,)
            else:
                info = await cast(Any, client).execute_command("INFO", section)
        return cast(dict[str, str | int], info)

    async def scan(self, pattern: str, *, count: int = 1000) -> AsyncGenerator[str]:
        """Names of the keys that match, over all primaries. SCAN may give a name twice."""
        client = self.topology.client
        nodes: list[Any] = list(client.get_primaries()) if isinstance(client, RedisCluster) else []
        for node in nodes or [None]:
            cursor: int | None = None
            while cursor != 0:
                command = ("SCAN", cursor or 0, "MATCH", pattern, "COUNT", count)
                with translated(self.endpoint):
                    reply = await (
                        cast(Any, client).execute_command(*command, target_nodes=node)
                        if node
                        else cast(Any, client).execute_command(*command)
                    )
                cursor, names = _scanned(reply)
                for name in names:
                    yield name.decode("utf-8", "replace")


def _flat(fields: Mapping[str, bytes]) -> list[Argument]:
    return [part for item in fields.items() for part in item]


def _scanned(reply: Any) -> tuple[int, list[bytes]]:
    """The cursor and the names; the Cluster client keys the cursor by node."""
    cursor, names = reply
    if isinstance(cursor, dict):
        (cursor,) = cast(dict[str, int], cursor).values()
    return int(cast(int, cursor)), cast(list[bytes], names)
