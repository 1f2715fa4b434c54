"""A RESP3 connection of our own, for the paths where a frame or a stop must not wait.

redis-py serves all else. Here commands are pipelined without a task or lock for each, replies come
in order, and server pushes (client-side caching) reach a callback at once.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Self, TypeAlias, cast

import hiredis

from voicefleet.wire.endpoint import Endpoint

Argument: TypeAlias = bytes | str | int
Command: TypeAlias = Sequence[Argument]
Reply: TypeAlias = object
"""``bytes``, ``int``, ``None``, ``list`` or ``dict``; an error reply is a ``ReplyError``."""

ReplyError = hiredis.ReplyError

_INCOMPLETE: Final = object()
_pack = cast(Callable[[tuple[Argument, ...]], bytes], hiredis.pack_command)


class LinkClosedError(ConnectionError):
    """The connection is gone. Commands without a reply may or may not have been carried out."""


class _Batch:
    """Commands sent together; ``done`` gets their replies."""

    __slots__ = ("count", "done", "replies")

    def __init__(self, count: int, done: Callable[[list[Reply] | LinkClosedError], None]) -> None:
        self.count = count
        self.replies: list[Reply] = []
        self.done = done


class Link(asyncio.Protocol):
    """A connection after its handshake. ``Link.open`` makes it, ``close`` ends it.

    ``on_push`` gets the elements of each server push. ``on_lost`` is called once, when the
    connection is gone. Both run inside the event loop's read callback and must return at once.
    """

    def __init__(
        self,
        on_push: Callable[[list[Reply]], None] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._batches: deque[_Batch] = deque()
        self._transport: asyncio.Transport | None = None
        self._on_push = on_push
        self._on_lost = on_lost
        self._timeout_s = 3.0

    @classmethod
    async def open(
        cls,
        address: tuple[str, int],
        endpoint: Endpoint,
        on_push: Callable[[list[Reply]], None] | None = None,
        on_lost: Callable[[], None] | None = None,
        name: str = "voicefleet",
    ) -> Self:
        """Connect, authenticate, select the database.

        Raises:
            LinkClosedError: The server cannot be reached, or closed the connection.
            ReplyError: The server refused the credentials, or RESP3.
        """
        link = cls(on_push, on_lost)
        link._timeout_s = endpoint.timeout_s
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(endpoint.connect_timeout_s):
                await loop.create_connection(
                    lambda: link,
                    *address,
                    ssl=endpoint.tls,
                    server_hostname=address[0] if endpoint.tls else None,
                )
        except (OSError, TimeoutError) as error:
            raise LinkClosedError(f"cannot connect to {address[0]}:{address[1]}: {error}") from None
        try:
            hello: list[Argument] = ["HELLO", 3]
            if endpoint.password is not None:
                hello += ["AUTH", endpoint.username or "default", endpoint.password]
            commands: list[Command] = [[*hello, "SETNAME", name]]
            if endpoint.db:
                commands.append(["SELECT", endpoint.db])
            for reply in await link.batch(commands):
                if isinstance(reply, ReplyError):
                    raise reply
        except BaseException:
            link.close()
            raise
        return link

    @property
    def closed(self) -> bool:
        """Whether the connection is gone or closing."""
        return self._transport is None or self._transport.is_closing()

    def submit(
        self,
        commands: Sequence[Command],
        done: Callable[[list[Reply] | LinkClosedError], None],
    ) -> None:
        """Send commands in one write; ``done`` is called once, with the replies or the error."""
        if self._transport is None or self._transport.is_closing():
            done(LinkClosedError("the connection is closed"))
            return
        self._batches.append(_Batch(len(commands), done))
        self._transport.write(b"".join([_pack(tuple(command)) for command in commands]))

    async def batch(
        self, commands: Sequence[Command], timeout_s: float | None = None
    ) -> list[Reply]:
        """Send commands in one write and wait for all replies; errors are among them.

        Cancelling ends only the wait: the connection can still be used.

        Args:
            commands: Each a name and its arguments.
            timeout_s: Seconds to wait; by default the endpoint's ``timeout_s``.

        Raises:
            LinkClosedError: The connection is gone, or no reply came in time; then it is closed.
        """
        future: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()

        def done(result: list[Reply] | LinkClosedError) -> None:
            if future.done():
                return
            if isinstance(result, LinkClosedError):
                future.set_exception(result)
            else:
                future.set_result(result)

        self.submit(commands, done)
        try:
            async with asyncio.timeout(timeout_s or self._timeout_s):
                return await future
        except TimeoutError:
            self.close()
            raise LinkClosedError("no reply in time") from None

    async def call(self, *command: Argument, timeout_s: float | None = None) -> Reply:
        """Send one command. Raises as ``batch``, and ``ReplyError`` for an error reply."""
        (reply,) = await self.batch([command], timeout_s)
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    def close(self) -> None:
        """Drop the connection at once. Those who wait for replies get ``LinkClosedError``."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._reader.feed(data)
        while True:
            try:
                reply = self._reader.gets()
            except Exception:
                # Not RESP, or not representable in Python, such as a map with a list as key.
                self.close()
                return
            if reply is _INCOMPLETE:
                return
            if isinstance(reply, hiredis.PushNotification):
                if self._on_push is not None:
                    self._on_push(list(reply))
                continue
            if not self._batches:
                self.close()  # a reply without a command: the stream is out of step
                return
            batch = self._batches[0]
            batch.replies.append(reply)
            if len(batch.replies) == batch.count:
                self._batches.popleft()
                batch.done(batch.replies)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._transport = None
        batches, self._batches = self._batches, deque()
        for batch in batches:
            batch.done(LinkClosedError("the connection was lost"))
        if self._on_lost is not None:
            self._on_lost()
