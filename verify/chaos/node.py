"""One server process of a topology, and what faults do to it."""

import os
import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from voicefleet.embedded_server import HOST, EmbeddedServer

ADMIN: Final = "chaos"
"""Our connections' name: faults leave them alone."""

_TIMEOUT_S: Final = 5.0


class Node:
    """A server and its lines of configuration, which apply from its next start on."""

    def __init__(self, server: EmbeddedServer, config: list[str]) -> None:
        self.server = server
        self._config = config

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        config: Sequence[str] = (),
        *,
        binary: Path | str | None = None,
        directory: Path | None = None,
        cluster: bool = False,
        debug: bool = True,
    ) -> AsyncGenerator[Self]:
        """Start one; it ends with the block, even if SIGSTOP has stopped it.

        ``debug`` enables the command ``DEBUG``, a setting that Sentinels do not have.
        """
        lines = [*(["enable-debug-command yes"] if debug else []), *config]
        async with EmbeddedServer.start(
            binary=binary, directory=directory, cluster=cluster, config=lines
        ) as server:
            node = cls(server, lines)
            try:
                yield node
            finally:
                node.go_on()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.server.port

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{HOST}:{self.port}"

    def client(self, timeout_s: float = _TIMEOUT_S) -> Any:
        """A client that retries nothing. Text in and out; untyped, as half of its commands are."""
        return Redis(
            host=HOST,
            port=self.port,
            client_name=ADMIN,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        )

    async def call(self, *command: str | int, timeout_s: float = _TIMEOUT_S) -> Any:
        """One command on a connection of its own. Raises redis-py's errors."""
        async with self.client(timeout_s) as client:
            return await client.execute_command(*command)

    async def info(self, section: str) -> dict[str, Any]:
        """``INFO``, parsed."""
        async with self.client() as client:
            return await client.info(section)

    async def restart(self, *more: str) -> None:
        """Start it again with further lines of configuration (of this start alone)."""
        kept = self._config[:]
        self._config += more
        try:
            await self.server.restart()
        finally:
            self._config[:] = kept

    def stall(self) -> None:
        """Stop it with SIGSTOP. Its connections stay open."""
        os.kill(self.server.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it continue (SIGCONT), if it runs."""
        try:
            os.kill(self.server.pid, signal.SIGCONT)
        except (RuntimeError, ProcessLookupError):
            return
