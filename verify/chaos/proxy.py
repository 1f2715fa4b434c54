"""A TCP proxy that simulates a bad network between one worker and the server.

As with TCP, bytes arrive in order or the connection breaks. A lost packet is therefore a stall
until it is retransmitted, which delays everything behind it.
"""

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, Literal, Self, cast

import anyio
import msgspec
from anyio.abc import SocketAttribute, SocketListener, SocketStream, TaskGroup

HOST: Final = "127.0.0.1"
RETRANSMIT_S: Final = 0.2
"""TCP's shortest retransmission timeout; a packet lost again waits twice as long each time."""

_CHUNK: Final = 1 << 16
_QUEUED_CHUNKS: Final = 256
_RESET: Final = struct.pack("ii", 1, 0)


class Conditions(msgspec.Struct, frozen=True):
    """What the network does to each connection.

    ``delay_s`` and ``jitter_s`` delay each chunk; ``loss`` is the share of chunks that are sent
    again. In state ``silent`` nothing gets through; ``down`` resets connections and refuses new
    ones. After ``silent``, held data is delivered, or, with ``forgotten``, the connections are
    reset, as by a router that lost its table.
    """

    state: Literal["up", "silent", "down"] = "up"
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    forgotten: bool = False


HEALTHY: Final = Conditions()


class Proxy:
    """A port that forwards to the server, at first without disturbance. Made by ``start``."""

    def __init__(self, target: int, tasks: TaskGroup, seed: int) -> None:
        self.port = 0
        self._target = target
        self._tasks = tasks
        self._random = random.Random(seed)
        self._conditions = HEALTHY
        self._changed = anyio.Event()
        self._connections: set[_Connection] = set()
        self._listening: anyio.CancelScope | None = None

    @classmethod
    @asynccontextmanager
    async def start(cls, target: int, seed: int = 0) -> AsyncGenerator[Self]:
        """Listen on a free port of loopback; ``target`` is the server's port."""
        async with anyio.create_task_group() as tasks:
            proxy = cls(target, tasks, seed)
            await proxy._listen()
            yield proxy
            tasks.cancel_scope.cancel()

    @property
    def conditions(self) -> Conditions:
        """The present conditions."""
        return self._conditions

    async def set(self, conditions: Conditions) -> None:
        """Change the conditions of present and new connections."""
        before, self._conditions = self._conditions, conditions
        if conditions.state == "down":
            if self._listening is not None:
                self._listening.cancel()
                self._listening = None
            self._reset_all()
        elif self._listening is None:
            await self._listen()
        if before.state == "silent" and conditions.state == "up" and before.forgotten:
            self._reset_all()
        self._changed.set()
        self._changed = anyio.Event()

    def lateness_s(self) -> float:
        """The next chunk's delay: fixed delay, jitter and retransmissions."""
        conditions, late_s = self._conditions, 0.0
        if conditions.delay_s or conditions.jitter_s:
            late_s = conditions.delay_s + conditions.jitter_s * self._random.uniform(-1, 1)
        timeout_s = RETRANSMIT_S
        while conditions.loss and self._random.random() < conditions.loss:
            late_s += timeout_s
            timeout_s *= 2
        return max(0.0, late_s)

    async def passable(self) -> None:
        """Wait until data gets through."""
        while self._conditions.state != "up":
            await self._changed.wait()

    def _reset_all(self) -> None:
        for connection in self._connections:
            connection.reset()

    async def _listen(self) -> None:
        listeners = await anyio.create_tcp_listener(
            local_host=HOST, local_port=self.port, reuse_port=False
        )
        (listener,) = listeners.listeners
        self.port = listener.extra(SocketAttribute.local_port)
        self._listening = anyio.CancelScope()
        self._tasks.start_soon(self._accept, cast(SocketListener, listener), self._listening)

    async def _accept(self, listener: SocketListener, scope: anyio.CancelScope) -> None:
        async with listener:
            with scope:
                await listener.serve(self._serve, self._tasks)

    async def _serve(self, client: SocketStream) -> None:
        connection = _Connection(self, client)
        self._connections.add(connection)
        try:
            await connection.run(self._target)
        finally:
            self._connections.discard(connection)


class _Connection:
    """A client's connection and the one made for it to the server."""

    def __init__(self, proxy: Proxy, client: SocketStream) -> None:
        self._proxy = proxy
        self._client = client
        self._scope = anyio.CancelScope()
        self._streams = [client]
        self._broken = False

    def reset(self) -> None:
        """Reset both ends."""
        self._broken = True
        self._scope.cancel()

    async def run(self, target: int) -> None:
        try:
            with self._scope:
                await self._proxy.passable()
                server = await anyio.connect_tcp(HOST, target)
                self._streams.append(server)
                async with anyio.create_task_group() as pumps:
                    pumps.start_soon(self._pump, self._client, server)
                    pumps.start_soon(self._pump, server, self._client)
        except* (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._broken = True
        finally:
            with anyio.CancelScope(shield=True):
                for stream in self._streams:
                    if self._broken:
                        _reset_on_close(stream)
                        await anyio.aclose_forcefully(stream)
                    else:
                        await stream.aclose()

    async def _pump(self, source: SocketStream, sink: SocketStream) -> None:
        """Copy one direction. When it ends, so does the connection."""
        loop = asyncio.get_running_loop()
        send, receive = anyio.create_memory_object_stream[tuple[float, bytes]](_QUEUED_CHUNKS)

        async def arrive() -> None:
            with send, contextlib.suppress(anyio.EndOfStream):
                while True:
                    chunk = await source.receive(_CHUNK)
                    await send.send((loop.time() + self._proxy.lateness_s(), chunk))

        async def leave() -> None:
            free_at = 0.0
            with receive:
                async for due, chunk in receive:
                    free_at = max(free_at, due)
                    if free_at > loop.time():
                        await anyio.sleep(free_at - loop.time())
                    await self._proxy.passable()
                    await sink.send(chunk)

        async with anyio.create_task_group() as both:
            both.start_soon(arrive)
            await leave()
        self._scope.cancel()


def _reset_on_close(stream: SocketStream) -> None:
    raw = stream.extra(SocketAttribute.raw_socket)
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
