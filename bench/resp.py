"""A blocking RESP connection with a clock: as little as possible between socket and timestamp.

What is measured must be the fleet and not the client. A command is packed before its clock
starts, and a reply's arrival is the moment its last byte was read, before it is parsed.
"""

import select
import socket
import time
from collections.abc import Callable
from typing import Any, Final, Self, cast

import hiredis

Argument = bytes | str | int

_INCOMPLETE: Final = object()
_BUFFER_BYTES: Final = 1 << 20
# hiredis' stubs want a tuple of one and a copy; neither is needed.
_pack = cast(Callable[[tuple[Argument, ...]], bytes], hiredis.pack_command)


def pack(*command: Argument) -> bytes:
    """A command as it goes over the wire."""
    return _pack(command)


class Connection:
    """One connection to a server on loopback, RESP2. Times are ``time.monotonic_ns()``.

    That clock is common to all processes of a machine.
    """

    def __init__(self, port: int, timeout_s: float = 30.0) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._arrival = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, packed: bytes) -> int:
        """Send packed commands; returns when the first byte left."""
        sent = time.monotonic_ns()
        self._socket.sendall(packed)
        return sent

    def receive(self) -> tuple[Any, int]:
        """The next reply, and when its last byte was here. Raises the server's error."""
        while (reply := self._reader.gets()) is _INCOMPLETE:
            count = self._socket.recv_into(self._buffer)
            self._arrival = time.monotonic_ns()
            if not count:
                raise ConnectionError("the server closed the connection")
            self._reader.feed(cast(bytes, self._buffer[:count]))
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply, self._arrival

    def wait(self, seconds: float) -> bool:
        """Whether anything arrives within this time."""
        return bool(select.select([self._socket], [], [], max(0.0, seconds))[0])

    def call(self, *command: Argument) -> Any:
        """Send a command and wait for its reply."""
        self.send(pack(*command))
        return self.receive()[0]

    def close(self) -> None:
        """Drop the connection."""
        self._socket.close()
