"""A worker as a child process, which ends with the command that started it."""

import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Final, Self

import anyio
from anyio.abc import Process

from voicefleet.child_process import tied
from voicefleet.cli.failure import Failure
from voicefleet.producer.client import VoiceFleet

READY_TIMEOUT_S: Final = 120.0
DRAIN_TIMEOUT_S: Final = 1.0
_POLL_S: Final = 0.05


class WorkerProcess:
    """A running ``voicefleet worker``. Made by ``start``."""

    def __init__(self, process: Process, name: str, log: Path | None) -> None:
        self._process = process
        self._log = log
        self.name = name

    @classmethod
    @asynccontextmanager
    async def start(
        cls, config: Path, url: str, *, name: str, log: Path | None = None
    ) -> AsyncGenerator[Self]:
        """Start one; at the end of the block drain it, or kill it where that takes too long.

        It logs to the file ``log``, or else to this process's stderr.
        """
        command = [sys.executable, "-m", "voicefleet", "worker", "--config", str(config)]
        command += ["--name", name, "--set", f"worker.drain_timeout_s={DRAIN_TIMEOUT_S}"]
        # The URL may hold a password: other users can see arguments, but not the environment.
        environ = {**os.environ, "VOICEFLEET_REDIS_URL": url}
        stderr: IO[bytes] | None = log.open("wb") if log is not None else None
        try:
            # A session of its own: Ctrl-C reaches this process alone, which then drains the worker.
            process = await anyio.open_process(
                tied(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=environ,
                start_new_session=True,
            )
        finally:
            if stderr is not None:
                stderr.close()
        try:
            yield cls(process, name, log)
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process)

    async def ready(self, fleet: VoiceFleet) -> None:
        """Wait until its record says that it takes requests.

        Raises:
            Failure: It ended, or took too long.
        """
        with anyio.move_on_after(READY_TIMEOUT_S):
            while self._process.returncode is None:
                if any(
                    w.name == self.name and w.record.state == "ready" for w in await fleet.workers()
                ):
                    return
                await anyio.sleep(_POLL_S)  # polled: nothing announces a record
        raise self._failure()

    async def ended(self) -> None:
        """Wait until it ends, and raise ``Failure``: it should outlive the wait."""
        await self._process.wait()
        raise self._failure()

    def _failure(self) -> Failure:
        status = self._process.returncode
        problem = f"ended with status {status}" if status is not None else "did not get ready"
        lines = self._log.read_text(errors="replace").splitlines()[-12:] if self._log else []
        return Failure("\n".join([f"the worker {problem}", *lines]))


async def _end(process: Process) -> None:
    for signal, patience_s in ((process.terminate, DRAIN_TIMEOUT_S + 2), (process.terminate, 2)):
        if process.returncode is not None:
            break
        signal()
        with anyio.move_on_after(patience_s):
            await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()
    await process.aclose()
