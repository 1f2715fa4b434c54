"""Standard input and output without blocking the event loop: pipes, terminals, files."""

import codecs
import os
from collections.abc import AsyncGenerator

import anyio

CHUNK = 65_536
PIPE_BUF = 4096
"""A pipe that is writable takes this much without blocking."""


async def _ready(fd: int, *, to_write: bool = False) -> None:
    try:
        await (anyio.wait_writable(fd) if to_write else anyio.wait_readable(fd))
    except PermissionError:  # a regular file: always ready, and refused by epoll
        await anyio.lowlevel.checkpoint()


async def write(fd: int, data: bytes) -> None:
    """Write all of ``data``. Raises ``BrokenPipeError`` when the reader has closed the pipe."""
    rest = memoryview(data)
    while rest:
        await _ready(fd, to_write=True)
        rest = rest[os.write(fd, rest[:PIPE_BUF]) :]


async def lines(fd: int, *, pause_s: float) -> AsyncGenerator[str | None]:
    """Yield the input in whole lines, and ``None`` after each ``pause_s`` without input."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest = ""
    while True:
        with anyio.move_on_after(pause_s) as silence:
            await _ready(fd)
        if silence.cancelled_caught:
            yield None
            continue
        data = os.read(fd, CHUNK)
        rest += decoder.decode(data, final=not data)
        cut = rest.rfind("\n") + 1 if data else len(rest)
        if cut:
            yield rest[:cut]
            rest = rest[cut:]
        if not data:
            return
