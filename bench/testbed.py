"""A server and a worker, each in its own process, for one measurement."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
import psutil

from bench.resp import Connection
from voicefleet.embedded_server import EmbeddedServer
from voicefleet.schemas.keys import Keys

ROOT: Final = Path(__file__).parent.parent
TONE: Final = ROOT / "configs/tone.yaml"
PIPER: Final = ROOT / "configs/piper.yaml"

NO_DRAIN: Final = "worker.drain_timeout_s=0.05"
"""A setting by which a worker ends at once: nobody waits for its turns."""

_NAME: Final = "bench"
_READY_S: Final = 60.0
_END_S: Final = 30.0
_LOOK_S: Final = 0.02
_WORKER: Final = (sys.executable, "-m", "voicefleet", "worker", "--config")


class Testbed(msgspec.Struct, frozen=True):
    """The running processes. Keys have the default prefix."""

    server: EmbeddedServer
    worker: psutil.Process
    model: str
    keys: Keys = Keys()

    def connect(self) -> Connection:
        """A connection to the server."""
        return Connection(self.server.port)

    @property
    def server_process(self) -> psutil.Process:
        """The server's process."""
        return psutil.Process(self.server.pid)


@contextmanager
def testbed(
    config: Path,
    model: str,
    *settings: str,
    command: Sequence[str] = _WORKER,
    ready_s: float = _READY_S,
) -> Generator[Testbed]:
    """Start both and wait until the worker is ready; end both with the block.

    Args:
        config: The worker's configuration file.
        model: The model that requests name.
        settings: ``section.key=value``, which override the file.
        command: Runs the worker. The file, ``--redis-url``, ``--name`` and ``--set`` follow.
        ready_s: Raise ``RuntimeError`` if it is not ready within so many seconds.
    """
    with EmbeddedServer.start_blocking() as server, tempfile.TemporaryFile() as log:
        arguments = [str(config), "--redis-url", server.url, "--name", _NAME]
        for setting in (*settings, NO_DRAIN):
            arguments += ["--set", setting]
        worker = psutil.Popen(
            [*command, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=log
        )
        try:
            with Connection(server.port) as connection:
                _await_ready(connection, worker, ready_s)
            yield Testbed(server, worker, model)
        except BaseException:
            log.seek(0)
            print(*log.read().decode(errors="replace").splitlines()[-12:], sep="\n")
            raise
        finally:
            end([worker])


def _await_ready(connection: Connection, worker: psutil.Popen, ready_s: float) -> None:
    deadline = time.monotonic() + ready_s
    while connection.call("HGET", Keys().worker(_NAME), "state") != b"ready":
        if worker.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the worker did not get ready (status {worker.poll()})")
        time.sleep(_LOOK_S)


def end(workers: Sequence[psutil.Popen]) -> None:
    """Drain workers, and kill those that take long."""
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    for worker in workers:
        try:
            worker.wait(_END_S)
        except psutil.TimeoutExpired:
            worker.kill()
            worker.wait()
