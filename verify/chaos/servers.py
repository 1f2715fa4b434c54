"""The servers under a run: what faults and clients need to know of any topology."""

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import anyio
from redis.exceptions import RedisError

from verify.chaos.kinds import Topology
from verify.chaos.node import Node

SETTLE_S: Final = 40.0
_LOOK_S: Final = 0.1


class Servers(Protocol):
    """A topology of real processes. ``url`` is what clients get."""

    topology: Topology
    url: str

    async def primaries(self) -> list[Node]:
        """Those that take writes now, in a lasting order."""
        ...

    async def owner(self, key: str) -> Node:
        """The primary that has this key."""
        ...

    async def replica_of(self, primary: Node) -> Node:
        """One that follows the primary."""
        ...

    async def is_whole(self) -> bool:
        """Whether everything runs and every replica has what its primary has."""
        ...

    async def rejoin(self, node: Node, leader: Node) -> None:
        """Bring a dead former primary back, as a replica of the one that took its place."""
        ...

    async def promote(self, replica: Node, *, force: bool) -> None:
        """Ask for a failover by hand; with ``force`` nobody waits for the primary's newest."""
        ...


async def until(true: Callable[[], Awaitable[bool]], what: str, limit_s: float = SETTLE_S) -> None:
    """Ask servers until they say yes; those that do not answer say no.

    Raises:
        TimeoutError: They never did. The message says ``what`` was waited for.
    """
    with anyio.move_on_after(limit_s):
        while True:
            try:
                if await true():
                    return
            except (RedisError, OSError, RuntimeError):
                pass
            await anyio.sleep(_LOOK_S)
    raise TimeoutError(f"waited {limit_s:.0f} s for {what}")


async def settled(servers: Servers, limit_s: float = SETTLE_S) -> None:
    """Wait until the topology is whole again. Raises ``TimeoutError``."""
    await until(servers.is_whole, "whole servers", limit_s)
