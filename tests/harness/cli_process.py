"""Runs the command line as a process."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.abc import Process

from tests.harness import ROOT

COMMAND = [sys.executable, "-m", "voicefleet"]
TONE = str(ROOT / "configs" / "tone.yaml")


@asynccontextmanager
async def running(
    *args: str,
    command: Sequence[str] = COMMAND,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
    **environ: str,
) -> AsyncGenerator[Process]:
    """Run a command with its streams in pipes; killed if it outlives the block."""
    process = await anyio.open_process(
        [*command, *args],
        # The terminal says how wide it is, not a variable of pytest-xdist's workers.
        env={k: v for k, v in os.environ.items() if k != "COLUMNS"} | environ,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
    )
    try:
        with anyio.fail_after(60):
            yield process
    finally:
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
                await process.wait()
            await process.aclose()


async def until(stream: anyio.abc.ByteReceiveStream | None, word: str) -> str:
    """Read the stream up to ``word``, inclusive."""
    assert stream is not None
    said = b""
    while word.encode() not in said:
        said += await stream.receive()
    return said.decode()


async def rest_of(stream: anyio.abc.ByteReceiveStream | None) -> str:
    """Read the stream to its end."""
    assert stream is not None
    return b"".join([chunk async for chunk in stream]).decode()


class Terminal:
    """A pseudo-terminal for a command's output: ``theirs`` is its end."""

    def __init__(self, columns: int = 80) -> None:
        self._ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    async def rest(self) -> str:
        """All output, once the command has ended."""
        os.close(self.theirs)
        said = b""
        try:
            while True:
                await anyio.wait_readable(self._ours)
                said += os.read(self._ours, 4096)
        except OSError:  # nobody holds the other end any more
            os.close(self._ours)
        return said.decode()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
