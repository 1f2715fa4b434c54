"""Commands to whichever server owns their key, over one shared pipelined link to each.

A call costs one write and no task, lock or pool, whoever else is calling. Blocking commands do not
belong here: they would hold up everyone behind them.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio
import structlog

from voicefleet.wire.connect import Address, Topology
from voicefleet.wire.link import Argument, Command, Link, LinkClosedError, Reply, ReplyError

log = structlog.stdlib.get_logger(__name__)

FIRST_RETRY_S: Final = 0.05
LAST_RETRY_S: Final = 0.8

ELSEWHERE: Final = ("MOVED", "ASK", "READONLY")
"""The server answers for this key no longer: find out who does."""

NOT_NOW: Final = (
    *("LOADING", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "NOREPLICAS", "OOM", "MISCONF", "BUSY "),
    # It knew our password before: a new primary without the users' file, or a rotation half done.
    *("WRONGPASS", "NOAUTH"),
)
"""The server will take the command later."""


def is_passing(error: ReplyError) -> bool:
    """Whether the refusal is of the moment: the same command may well succeed later."""
    return str(error).startswith((*ELSEWHERE, *NOT_NOW))


class Router:
    """The shared links of one process. Close it with ``close``."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self._links: dict[Address, Link] = {}
        self._opening = anyio.Lock()

    async def call(self, key: str, *command: Argument) -> Reply:
        """Run a command on the server that owns ``key``.

        Waits out a server that is away, loading or failing over: the command may then run twice,
        and must be one that may.

        Raises:
            ReplyError: The server refused the command itself.
        """
        (reply,) = await self.batch(key, [command])
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    async def batch(self, key: str, commands: Sequence[Command]) -> list[Reply]:
        """Run commands on keys in the slot of ``key``; refusals stand in their places."""
        return await patiently(lambda: self._batch(key, commands))

    def close(self) -> None:
        """Drop all links."""
        for link in self._links.values():
            link.close()
        self._links.clear()

    async def _batch(self, key: str, commands: Sequence[Command]) -> list[Reply]:
        link = self._links.get(self.topology.owner(key))
        if link is None or link.closed:
            link = await self._open(key)
        replies = await link.batch(commands)
        for reply in replies:
            if isinstance(reply, ReplyError) and is_passing(reply):
                if str(reply).startswith(ELSEWHERE):
                    await self.topology.refresh()
                    link.close()
                raise reply
        return replies

    async def _open(self, key: str) -> Link:
        async with self._opening:
            address = self.topology.owner(key)
            link = self._links.get(address)
            if link is None or link.closed:
                await self.topology.refresh()
                address = self.topology.owner(key)
                link = self._links[address] = await self.topology.open_link(address)
            return link


async def patiently(call: Callable[[], Awaitable[list[Reply]]]) -> list[Reply]:
    """Make a call again until the server takes it.

    Raises:
        ReplyError: The server refused the command itself.
    """
    wait_s = FIRST_RETRY_S
    while True:
        try:
            return await call()
        except ReplyError as error:
            if not is_passing(error):
                raise
            problem = str(error)
        except LinkClosedError as error:
            problem = str(error)
        if wait_s == FIRST_RETRY_S:
            log.warning("redis_away", error=problem)
        await anyio.sleep(wait_s)
        wait_s = min(wait_s * 2, LAST_RETRY_S)
