"""The worker processes of a run, which are restarted when they end.

As under systemd or Kubernetes, a worker that ended restarts under its name half a second later. An
exit or a traceback that no fault explains is a finding.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Self

import anyio
import msgspec
from anyio.abc import Process

from bench.testbed import ROOT
from verify.chaos.clock import FakeClock
from verify.chaos.sabotage import POISONED
from voicefleet.child_process import tied

AGAIN_S: Final = 0.5
END_S: Final = 15.0

_TRACEBACK: Final = re.compile(r"Traceback \(most recent call last\)")
_ERROR: Final = re.compile(
    r"(?:\\n|\n)((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b[^\\\n\"]{0,160})"
)


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How to run a worker. ``settings`` (``section.key=value``) override the file."""

    name: str
    url: str
    config: Path
    settings: tuple[str, ...] = ()


class Worker:
    """One worker's name, and its present process, if any."""

    def __init__(self, spec: WorkerSpec, directory: Path, *, fake_clock: bool) -> None:
        self.spec = spec
        self.log = directory / f"{spec.name}.log"
        self.clock = FakeClock(directory / f"{spec.name}.clock") if fake_clock else None
        self.starts = 0
        self.findings: list[str] = []
        self._process: Process | None = None
        self._sent: set[signal.Signals] = set()
        self._ended = anyio.Event()
        self._retired = False
        self._gone = anyio.Event()

    @property
    def name(self) -> str:
        """Its name in the fleet."""
        return self.spec.name

    @property
    def pid(self) -> int | None:
        """Its process, if it runs."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal. Returns whether there was a process."""
        process = self._process
        if process is None or process.returncode is not None:
            return False
        self._sent.add(number)
        process.send_signal(number)
        return True

    async def ended(self) -> None:
        """Wait until the present process has ended."""
        if self.pid is not None:
            await self._ended.wait()

    async def keep(self) -> None:
        """Run it, restarting it until ``retire``."""
        while not self._retired:
            self._process, self._sent = await self._spawn(), set()
            self.starts += 1
            if self._retired:
                self.signal(signal.SIGKILL)
            try:
                await self._process.wait()
            finally:
                with anyio.CancelScope(shield=True):
                    if self._process.returncode is None:
                        self._process.kill()
                        await self._process.wait()
                    await self._process.aclose()
            self._check_status(self._process.returncode)
            self._ended.set()
            self._ended = anyio.Event()
            if not self._retired:
                await anyio.sleep(AGAIN_S)
        self._gone.set()

    async def retire(self) -> None:
        """Drain it for good; a second SIGTERM follows if that takes long."""
        self._retired = True
        for _ in range(2):
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            with anyio.move_on_after(END_S / 2):
                await self._gone.wait()
                return
        self.findings.append(f"{self.name}: did not end within {END_S:.0f} s of SIGTERM")
        self.signal(signal.SIGKILL)
        await self._gone.wait()

    def tracebacks(self) -> list[str]:
        """The errors whose tracebacks are in the log."""
        if not self.log.exists():
            return []
        parts = _TRACEBACK.split(self.log.read_text(encoding="utf-8", errors="replace"))[1:]
        found: list[str] = []
        for part in parts:
            errors = _ERROR.findall(part)
            found.append(f"{self.name}: traceback: {errors[0] if errors else part[:160]!r}")
        return found

    def _check_status(self, status: int | None) -> None:
        if status == -signal.SIGKILL and signal.SIGKILL in self._sent:
            return
        # While Python starts, SIGTERM kills it.
        if status in (0, -signal.SIGTERM) and signal.SIGTERM in self._sent:
            return
        if status == POISONED:
            return
        self.findings.append(f"{self.name}: start {self.starts} ended with status {status}")

    async def _spawn(self) -> Process:
        spec = self.spec
        command = [sys.executable, "-m", "verify.chaos.worker", "--config", str(spec.config)]
        command += ["--name", spec.name]
        for setting in spec.settings:
            command += ["--set", setting]
        environ = {k: v for k, v in os.environ.items() if not k.startswith("VOICEFLEET_")}
        environ["VOICEFLEET_REDIS_URL"] = spec.url
        if self.clock is not None:
            environ |= self.clock.environment
        with self.log.open("ab") as log:
            return await anyio.open_process(
                tied(command),
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


class Workers:
    """All workers of a run. Made by ``start``; all have ended after the block."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = {worker.name: worker for worker in workers}

    @classmethod
    @asynccontextmanager
    async def start(
        cls, specs: Sequence[WorkerSpec], directory: Path, *, fake_clocks: bool = False
    ) -> AsyncGenerator[Self]:
        """Start them without waiting until they are ready. Their logs go to ``directory``."""
        workers = cls([Worker(one, directory, fake_clock=fake_clocks) for one in specs])
        async with anyio.create_task_group() as tasks:
            for worker in workers:
                tasks.start_soon(worker.keep)
            try:
                yield workers
            except BaseException:
                tasks.cancel_scope.cancel()  # kill instead of draining
                raise
            await workers._retire()

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    @property
    def names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self._workers)

    def __getitem__(self, name: str) -> Worker:
        return self._workers[name]

    @property
    def findings(self) -> list[str]:
        """Exits and tracebacks that no fault explains."""
        return [
            finding
            for worker in self._workers.values()
            for finding in (*worker.findings, *worker.tracebacks())
        ]

    async def _retire(self) -> None:
        async with anyio.create_task_group() as tasks:
            for worker in self._workers.values():
                tasks.start_soon(worker.retire)
