"""The engine's process, seen from the worker: start, messages, end."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Self, cast

import anyio
import structlog
from anyio.abc import Process

from voicefleet.worker.engines.hosting.messages import (
    Logged,
    Message,
    ProtocolError,
    Report,
    Unpacker,
    pack,
)

log = structlog.get_logger()

CHILD: Final = "voicefleet.worker.engines.hosting.child"

STOP_GRACE_S: Final = 2.0
STATUS_GRACE_S: Final = 1.0
KILLED_GRACE_S: Final = 20.0
_LOGGERS: Final = ("debug", "info", "warning", "error", "critical")
_TAKEN: Final = ("self", "event", "exc_info", "stack_info")


class EngineProcess(asyncio.Protocol):
    """One child and the socket to it. Created by ``start``, ended by ``stop``.

    ``on_report`` gets each report; ``on_gone`` is called once, with the reason, when no further
    report can come. Both are called from event loop callbacks and must return at once.
    """

    ENDED: Final = "its process ended"
    """The reason if no better one is known; see ``status``."""

    def __init__(self, on_report: Callable[[Report], None], on_gone: Callable[[str], None]) -> None:
        self._on_report = on_report
        self._on_gone = on_gone
        self._unpacker = Unpacker(Report)
        self._transport: asyncio.Transport | None = None
        self._process: Process | None = None
        self._gone = False
        self._killed = False
        self._writable = asyncio.Event()
        self._writable.set()

    @classmethod
    async def start(
        cls, on_report: Callable[[Report], None], on_gone: Callable[[str], None]
    ) -> Self:
        """Start the child.

        Raises:
            OSError: It cannot be started.
        """
        made = cls(on_report, on_gone)
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                arguments = [str(theirs.fileno()), str(os.getpid())]
                # The same import path as ours, without the current directory.
                paths = os.pathsep.join(path for path in sys.path if path)
                made._process = await anyio.open_process(
                    [sys.executable, "-P", "-m", CHILD, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=None,
                    stderr=None,
                    env={**_environment(), "PYTHONPATH": paths},
                    start_new_session=True,
                    pass_fds=[theirs.fileno()],
                )
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: made, sock=ours)
        except BaseException:
            ours.close()
            if made._process is not None:
                made._process.kill()
                with anyio.CancelScope(shield=True):
                    await made._process.wait()
            raise
        return made

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    def send(self, message: Message) -> None:
        """Send a command; does nothing if the child is gone."""
        if self._transport is not None:
            self._transport.write(pack(message))

    async def drained(self) -> None:
        """Wait while the child is not reading what was sent."""
        await self._writable.wait()

    def kill(self) -> None:
        """Kill the child now, whatever it is doing. ``stop`` must still be called."""
        if not self._killed:
            self._killed = True
            # The whole process group: processes that it started may hold device memory too.
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
        if self._transport is not None:
            self._transport.abort()

    async def stop(self, *, wait: bool) -> None:
        """Return when the child has exited; ``wait``: give it time to exit before killing it."""
        child = self._child
        try:
            if wait:
                with anyio.move_on_after(STOP_GRACE_S):
                    await child.wait()
        finally:
            self.kill()
            with anyio.move_on_after(KILLED_GRACE_S, shield=True) as patience:
                await child.wait()
            if patience.cancelled_caught:
                # Stuck in the kernel, probably in a driver: nothing here can end it.
                log.error("engine_process_stuck", pid=child.pid)

    async def status(self) -> str:
        """How a child that is gone exited, in words."""
        with anyio.move_on_after(STATUS_GRACE_S):
            await self._child.wait()
        status = self._child.returncode
        if status is None:
            return "still running"
        return f"exit status {status}" if status >= 0 else signal.Signals(-status).name

    @property
    def _child(self) -> Process:
        assert self._process is not None
        return self._process

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        try:
            reports = cast(list[Report], self._unpacker.feed(data))
        except ProtocolError as error:
            self._mark_gone(f"its process spoke nonsense: {error}")
            self.kill()
            return
        for report in reports:
            if isinstance(report, Logged):
                level = report.level if report.level in _LOGGERS else "warning"
                # Fields keep their names, except those that the log call itself uses.
                fields = {f"{k}_" if k in _TAKEN else k: v for k, v in report.fields.items()}
                getattr(log, level)(report.event, **fields)
            elif not self._gone:
                self._on_report(report)

    def pause_writing(self) -> None:
        """Called by the event loop when the child reads slower than we write."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Called by the event loop."""
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._transport = None
        self._writable.set()
        self._mark_gone(self.ENDED)

    def _mark_gone(self, reason: str) -> None:
        if not self._gone:
            self._gone = True
            self._on_gone(reason)


def _environment() -> dict[str, str]:
    """Our environment without the Redis credentials, which an engine does not need."""
    return {k: v for k, v in os.environ.items() if not k.startswith("VOICEFLEET_REDIS_")}
