"""Routes each command to the server that owns its key, over one shared, pipelined link to each.

A call costs one write, and no task, lock or pool, however many call at once. Do not send blocking
commands here: they would hold up all commands behind them.
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
"""Error replies: another server owns this key now. Find out which."""

NOT_NOW: Final = (
    *("LOADING", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "NOREPLICAS", "OOM", "MISCONF", "BUSY "),
    # The password was right before: a new primary lacks the users' file, or rotation is under way.
    *("WRONGPASS", "NOAUTH"),
)
"""Error replies: the server will take the command later."""


def is_passing(error: ReplyError) -> bool:
    """Whether the error is temporary: the same command may succeed later."""
    return str(error).startswith((*ELSEWHERE, *NOT_NOW))


class Router:
    """The shared links of one process, one to each server. End it with ``close``."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self._links: dict[Address, Link] = {}
        self._opening = anyio.Lock()

    async def call(self, key: str, *command: Argument) -> Reply:
        """Run a command on the server that owns ``key``.

        Waits, without a limit, for a server that is away, loading or failing over. The command may
        then run twice; send only commands that may.

        Raises:
            ReplyError: The server refused the command itself.
        """
        (reply,) = await self.batch(key, [command])
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    async def batch(self, key: str, commands: Sequence[Command]) -> list[Reply]:
        """Run commands on keys in the slot of ``key``; error replies are among the others."""
        return await patiently(lambda: self._batch(key, commands))

    def close(self) -> None:
        """Drop all links; those who wait for replies try again."""
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
    """Repeat ``call``, with a growing delay, while it fails for a temporary reason.

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
