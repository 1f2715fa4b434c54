"""Several workers and one server, each in its own process."""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil

from bench.load.probed_worker import Snapshot
from bench.resp import Connection
from bench.testbed import NO_DRAIN, ROOT, TONE, Testbed, end
from voicefleet.embedded_server import EmbeddedServer
from voicefleet.schemas.keys import Keys

MODEL: Final = "tone-test"

_READY_S: Final = 60.0
_LOOK_S: Final = 0.02
_ANSWER_S: Final = 10.0


class Worker:
    """One worker's process, with a probe of its event loop (``bench.load.probed_worker``)."""

    def __init__(self, name: str, process: psutil.Popen, probe: Path) -> None:
        self.name = name
        self.process = process
        self._probe = probe
        self._serial = 0

    def time_loop(self) -> None:
        """Start timing its event loop."""
        self.process.send_signal(signal.SIGUSR1)

    def snapshot(self) -> Snapshot:
        """The probe's findings since ``time_loop``. Raises ``TimeoutError`` without an answer."""
        self._serial += 1
        self.process.send_signal(signal.SIGUSR2)
        deadline = time.monotonic() + _ANSWER_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if self._probe.exists():
                found = msgspec.json.decode(self._probe.read_bytes(), type=Snapshot)
                if found.serial == self._serial:
                    return found
            time.sleep(_LOOK_S)
        raise TimeoutError(f"the worker {self.name} does not answer")


class Fleet(msgspec.Struct, frozen=True):
    """The running processes. Keys have the default prefix."""

    server: EmbeddedServer
    workers: tuple[Worker, ...]
    model: str = MODEL
    keys: Keys = Keys()

    def connect(self) -> Connection:
        """A connection to the server."""
        return Connection(self.server.port)

    @property
    def server_process(self) -> psutil.Process:
        """The server's process."""
        return psutil.Process(self.server.pid)

    @property
    def bed(self) -> Testbed:
        """The fleet as a testbed with its first worker."""
        return Testbed(self.server, self.workers[0].process, self.model, self.keys)


@contextmanager
def fleet(workers: int, *settings: str) -> Generator[Fleet]:
    """Start a server and ``workers`` workers with the tone engine; end all with the block.

    ``settings`` are ``section.key=value``, the same for each worker.
    """
    with (
        EmbeddedServer.start_blocking() as server,
        tempfile.TemporaryDirectory() as scratch,
        ExitStack() as stack,
    ):
        running: list[Worker] = []
        logs: list[Path] = []
        stack.callback(lambda: end([worker.process for worker in running]))
        for i in range(workers):
            name = f"load-{i}"
            logs.append(Path(scratch, f"{name}.log"))
            probe = Path(scratch, f"{name}.json")
            process = _spawn(name, server.url, probe, logs[-1], settings)
            running.append(Worker(name, process, probe))
        try:
            with Connection(server.port) as connection:
                _await_ready(connection, running)
            yield Fleet(server, tuple(running))
        except BaseException:
            for log in logs:
                print(*log.read_text(errors="replace").splitlines()[-12:], sep="\n")
            raise


def server_info(connection: Connection, *sections: str) -> dict[str, str]:
    """The server's INFO, all sections or those named."""
    reply: bytes = connection.call("INFO", *sections)
    lines = reply.decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def worker_record(connection: Connection, name: str) -> dict[str, str]:
    """A worker's present record; empty if there is none."""
    flat: list[Any] = connection.call("HGETALL", Keys().worker(name))
    texts = [part.decode() for part in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _spawn(name: str, url: str, probe: Path, log: Path, settings: Sequence[str]) -> psutil.Popen:
    arguments = [str(TONE), "--redis-url", url, "--name", name]
    for setting in (*settings, NO_DRAIN):
        arguments += ["--set", setting]
    with log.open("wb") as file:
        return psutil.Popen(
            [sys.executable, "-m", "bench.load.probed_worker", str(probe), *arguments],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=file,
            start_new_session=True,  # Ctrl-C goes to the bench, which ends the worker
        )


def _await_ready(connection: Connection, workers: Sequence[Worker]) -> None:
    deadline = time.monotonic() + _READY_S
    for worker in workers:
        while worker_record(connection, worker.name).get("state") != "ready":
            status = worker.process.poll()
            if status is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{worker.name} did not get ready (status {status})")
            time.sleep(_LOOK_S)
