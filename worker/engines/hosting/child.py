"""The child process of an engine: ``python -m ...hosting.child <socket fd> <worker pid>``.

It has three threads. One reads commands, one writes reports, and the main thread alone runs the
core: it handles all waiting commands, takes one step, and waits for commands if the core is idle.
``Alive`` is sent by the main thread, so that a step that hangs sends nothing.
"""

import ctypes
import faulthandler
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from voicefleet.worker.engines.hosting.core import Core, Emit
from voicefleet.worker.engines.hosting.cores import config_of, factory_of
from voicefleet.worker.engines.hosting.messages import (
    Alive,
    Cancel,
    Command,
    Consumed,
    End,
    Event,
    Failed,
    Fatal,
    Loaded,
    Logged,
    Message,
    Open,
    ProtocolError,
    Push,
    Spoken,
    Start,
    Stop,
    Unpacker,
    Warm,
    WarmUp,
    pack,
)
from voicefleet.worker.engines.protocol import CannotSpeakError, EngineError
from voicefleet.worker.voicepacks import voicepack

ALIVE_S: Final = 0.5
"""The longest time between two ``Alive`` while the loop turns."""

UNSENT_MESSAGES: Final = 1024
"""How many reports may be unsent before the main thread waits for the worker to read."""

ORPHANED: Final = 3
"""Exit status of a child whose worker is gone or sent an invalid message."""

log = structlog.get_logger()


class Channel:
    """The socket, with a thread for each direction."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._commands = queue.SimpleQueue[Command]()
        self._reports = queue.Queue[bytes | None](UNSENT_MESSAGES)
        self._writer = threading.Thread(target=self._write, name="reports", daemon=True)
        self._writer.start()
        threading.Thread(target=self._read, name="commands", daemon=True).start()

    def receive(self, timeout_s: float | None = 0.0) -> Command | None:
        """The next command, or ``None`` if none comes within the time (``None``: wait for ever)."""
        try:
            return self._commands.get(timeout_s != 0, timeout_s)
        except queue.Empty:
            return None

    def send(self, message: Message) -> None:
        """Queue a report; waits only if the worker does not read."""
        self._reports.put(pack(message))

    def finish(self) -> None:
        """Wait until all reports have been written."""
        self._reports.put(None)
        self._writer.join()

    def _read(self) -> None:
        unpacker = Unpacker(Command)
        try:
            while data := self._connection.recv(2**16):
                for command in unpacker.feed(data):
                    self._commands.put(command)
        except (OSError, ProtocolError):
            pass
        # At once, whatever the main thread is doing: it may hang in a device call.
        os._exit(ORPHANED)

    def _write(self) -> None:
        while (report := self._reports.get()) is not None:
            try:
                self._connection.sendall(report)
            except OSError:
                os._exit(ORPHANED)


class Loop:
    """Runs one core until it is told to stop."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._open: set[int] = set()
        self._alive_at = 0.0

    def emit(self, event: Event) -> None:
        """Send an event of the core."""
        if isinstance(event, Spoken | Failed):
            self._open.discard(event.turn)
        self._channel.send(event)

    def run(self, core: Core) -> None:
        """Alternate between commands and steps; return on ``Stop``."""
        busy = True
        while True:
            self._send_alive()
            command = self._channel.receive(0.0 if busy else ALIVE_S)
            while command is not None:
                if isinstance(command, Stop):
                    return
                self._execute(core, command)
                command = self._channel.receive()
            busy = core.step()

    def _send_alive(self) -> None:
        now = time.monotonic()
        if now - self._alive_at >= ALIVE_S / 2:
            self._alive_at = now
            self._channel.send(Alive())

    def _execute(self, core: Core, command: Command) -> None:
        match command:
            case WarmUp(text):
                core.warm_up(text)
                self._channel.send(Warm(core.info, dict(core.timings)))
            case Open(turn, spec):
                self._open.add(turn)
                self._apply(core, turn, lambda: core.open(turn, spec))
            case Push(turn, segment):
                self._apply(core, turn, lambda: core.push(turn, segment))
            case End(turn):
                self._apply(core, turn, lambda: core.end(turn))
            case Consumed(turn, samples):
                self._apply(core, turn, lambda: core.consumed(turn, samples))
            case Cancel(turn):
                self._apply(core, turn, lambda: core.cancel(turn))
                self._open.discard(turn)
            case _:
                raise ValueError(f"unexpected {type(command).__name__}")

    def _apply(self, core: Core, turn: int, work: Callable[[], None]) -> None:
        """Run ``work`` for a turn that is not over; an exception fails that turn alone."""
        if turn not in self._open:
            return
        try:
            work()
        except Exception as error:
            if not isinstance(error, CannotSpeakError | EngineError):
                log.exception("turn_broken", turn=turn)
            kind = "refuse" if isinstance(error, CannotSpeakError) else "retry"
            core.cancel(turn)
            self.emit(Failed(turn, kind, _message_of(error)))


def serve(channel: Channel) -> None:
    """Load the core that ``Start`` names and run it until ``Stop``. Errors become ``Fatal``."""
    start = channel.receive(None)
    try:
        if not isinstance(start, Start):
            raise ValueError(f"{type(start).__name__} before Start")
        loop = Loop(channel)
        core = _load(start, loop.emit)
        channel.send(Loaded(core.info, dict(core.timings)))
        loop.run(core)
        core.close()
    except EngineError as error:
        channel.send(Fatal(str(error)))
    except Exception as error:
        log.exception("engine_broken")
        channel.send(Fatal(_message_of(error)))


def _load(start: Start, emit: Emit) -> Core:
    pack = voicepack.read(Path(start.directory))
    core = factory_of(start.core)(pack, config_of(start.core, start.config), emit)
    core.load()
    return core


def _message_of(error: Exception) -> str:
    ours = isinstance(error, EngineError | CannotSpeakError)
    return str(error) if ours else f"{type(error).__name__}: {error}"


# Log lines go through the worker's log, with its format, level and redaction.


def log_to(channel: Channel) -> None:
    """Send our log lines, and libraries' from level warning on, to the worker."""

    def forward(_: object, level: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        fields = {str(key): value for key, value in event.items()}
        name = str(fields.pop("event", ""))
        channel.send(Logged(level, name, msgspec.to_builtins(fields, enc_hook=str)))
        raise structlog.DropEvent

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            forward,
        ],
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Forward(channel)], level=logging.WARNING, force=True)


class _Forward(logging.Handler):
    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        fields = {"logger": record.name}
        self._channel.send(Logged(record.levelname.lower(), record.getMessage(), fields))


def die_with(parent: int) -> None:
    """Let this process die with the worker (PR_SET_PDEATHSIG is 1), and ignore its signals.

    A terminal's Ctrl-C and a supervisor's SIGTERM reach the whole process group. The worker drains
    its turns then, and sends ``Stop`` when it is done.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(ORPHANED)  # the worker died before prctl


def main(argv: list[str]) -> None:
    """Run the process. It exits without finalising the interpreter: the system frees faster."""
    faulthandler.enable()
    descriptor, parent = map(int, argv)
    die_with(parent)
    channel = Channel(socket.socket(fileno=descriptor))
    log_to(channel)
    serve(channel)
    channel.finish()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
