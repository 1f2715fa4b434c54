"""Runs one call on a GPU machine: its steps one after another, each in its own process.

``bench/gpu.sh`` installs what the steps need and documents the options; this module imports the
standard library alone. At any moment the folder of results has

    <call>.json     how each step went, and the reports of those that are over
    <call>.tar.gz   the logs of those
    running/        the report so far and the log of the one that runs

so that a killed call loses no measurement, in a few files.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import IO, Any, NamedTuple, NoReturn

CALLS = ("smoke", "engine", "fleet")

USUAL_S = 540.0

LEAST_S = 45.0
"""With less time left, no further step begins."""

GRACE_S = 5.0
"""From the signal that ends a step to the one that it cannot ignore."""


PLACES = ("--out", "{out}", "--packs", "{packs}")


class Step(NamedTuple):
    """Arguments of Python, with ``{out}`` and ``{packs}``, and the most seconds that they may take.

    Those are for a call of ``USUAL_S``; a longer one gives each step more.
    """

    name: str
    most_s: float
    arguments: tuple[str, ...]


FULL_PACK = Step("full pack", 150, ("-m", "bench.cosyvoice.packs", "{packs}", "full"))
"""Write the pack first if it is missing, so that no measured step waits for it."""


def smoke(gpu: bool, _: tuple[str, ...]) -> Iterator[Step]:
    """Some four minutes: does it run there at all, and how."""
    module = ("-m", "bench.cosyvoice.smoke", *PLACES)
    yield Step("machine", 60, (*module, "machine"))
    yield Step("speak tiny", 90, (*module, "speak"))
    if find_spec("pytest") is not None:
        # Without a GPU all of them are skipped, and one file shows that.
        folder = "tests/worker/engines/cosyvoice2"
        tests = folder if gpu else f"{folder}/test_gpu.py"
        command = ("-m", "pytest", tests, "-m", "gpu", "-rs", "-v", "-p", "no:cacheprovider")
        yield Step("tests on the GPU", 150, command)
    if gpu:
        yield FULL_PACK
    size = "full" if gpu else "tiny"
    yield Step(f"nodes {size}", 180, (*module, "nodes", "--pack", size))


def engine(gpu: bool, sizes: tuple[str, ...]) -> Iterator[Step]:
    """The engine alone. What matters most comes first, should the time run out."""

    def step(name: str, most_s: float, *arguments: str) -> Step:
        command = ("-m", "bench", "engine", "--no-picture", *PLACES, *arguments, *sizes)
        return Step(name, most_s, command)

    if not gpu:
        cpu = ("--pack", "tiny", "--device", "cpu", "--threads", "1")
        yield step("tiny", 300, *cpu, "--only", "levels")
        yield step("tiny batching", 200, *cpu, "--only", "batching", "--suffix", "batching")
        return
    yield FULL_PACK
    full = ("--pack", "full", "--dtype", "bf16")
    few = ("--sessions", "1,64")
    yield step("full bf16", 200, *full, "--only", "levels")
    yield step("full bf16 batching", 120, *full, "--only", "batching", "--suffix", "batching")
    for part in ("one-slot", "upstream-exact"):
        yield step(f"full bf16 {part}", 90, *full, "--only", part, "--suffix", part)
    yield step("full bf16 eager", 120, *full, "--eager", "--only", "levels", *few)
    yield step("full fp16", 120, "--pack", "full", "--dtype", "fp16", "--only", "levels", *few)
    yield step("tiny bf16", 90, "--pack", "tiny", "--dtype", "bf16", "--only", "levels")


def fleet(gpu: bool, sizes: tuple[str, ...]) -> Iterator[Step]:
    """The whole way, through Redis."""

    def step(name: str, most_s: float, *arguments: str) -> Step:
        command = ("-m", "bench", "gpu", "--no-picture", *PLACES, *arguments, *sizes)
        return Step(name, most_s, command)

    if not gpu:
        yield step("tiny", 300, "--pack", "tiny", "--device", "cpu", "--threads", "1")
        return
    yield FULL_PACK
    yield step("full bf16", 300, "--pack", "full", "--dtype", "bf16")
    yield step("tiny bf16", 150, "--pack", "tiny", "--dtype", "bf16")


class Call:
    """Runs the steps and writes their results."""

    def __init__(self, name: str, out: Path, packs: Path, limit_s: float) -> None:
        self._name = name
        self._out = out
        self._packs = packs
        self._running = out / "running"
        self._begun = time.monotonic()
        self._limit_s = limit_s
        self._logs = Path(tempfile.mkdtemp(prefix="voicefleet-logs-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._found: dict[str, Any] = {
            "call": name,
            "began_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": platform.platform(),
            "limit_s": limit_s,
            "steps": [],
            "skipped": [],
            "reports": {},
        }
        out.mkdir(parents=True, exist_ok=True)
        # Left over from a call that was killed.
        shutil.rmtree(self._running, ignore_errors=True)
        self._write()

    @property
    def failed(self) -> list[str]:
        """Steps that failed, without those that were cut short by the time limit."""
        return [
            one["name"] for one in self._found["steps"] if one["status"] not in (0, "cut short")
        ]

    def skip(self, what: str) -> None:
        """Record that something is not measured, and why."""
        self._found["skipped"].append(what)
        self._write()

    def run(self, step: Step) -> None:
        """Run one step in the remaining time."""
        left = self._limit_s - (time.monotonic() - self._begun)
        if left < LEAST_S:
            self.skip(f"{step.name}: no time left")
            return
        print(f"\n== {self._name}: {step.name}", flush=True)
        self._running.mkdir(exist_ok=True)
        log = self._running / f"{self._name}_{step.name.replace(' ', '_')}.log"
        places = {"{out}": str(self._running), "{packs}": str(self._packs)}
        command = [sys.executable, *(places.get(one, one) for one in step.arguments)]
        at = time.monotonic()
        most_s = step.most_s * max(1.0, self._limit_s / USUAL_S)
        try:
            status = self._wait(command, log, min(most_s, left))
        except SystemExit:
            self._found["skipped"].append(f"{step.name}, and what follows: ended by a signal")
            self._gather()
            raise
        if status == "too long" and left < most_s:
            status = "cut short"
        self._found["steps"].append(
            {"name": step.name, "status": status, "seconds": round(time.monotonic() - at, 1)}
        )
        self._gather()

    def show(self) -> None:
        """Print how the steps ended."""
        print(f"\n== {self._name}, in {time.monotonic() - self._begun:.0f} s")
        for one in self._found["steps"]:
            print(f"{one['seconds']:6.0f} s  {one['status']!s:>9}  {one['name']}")
        for one in self._found["skipped"]:
            print(f"skipped  {one}")
        print(f"written: {self._out / self._name}.json and .tar.gz", flush=True)

    def _wait(self, command: list[str], log: Path, seconds: float) -> int | str:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0
        )
        self._process = process
        assert process.stdout is not None
        copying = threading.Thread(target=_copy, args=(process.stdout, log))
        copying.start()
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return "too long"
        finally:
            # A worker left behind by a step would hold the device.
            _end(process)
            self._process = None
            copying.join(GRACE_S)

    def _gather(self) -> None:
        """Collect the files of the step that ended."""
        for path in sorted(self._running.glob("*")) if self._running.exists() else ():
            if path.suffix == ".json":
                self._found["reports"][path.stem] = json.loads(path.read_bytes())
            elif path.suffix == ".log":
                shutil.copy(path, self._logs)
        self._write()
        draft = self._out / f"{self._name}.tar.draft"
        with tarfile.open(draft, "w:gz") as archive:
            archive.add(self._logs, arcname=f"{self._name}_logs")
        draft.replace(self._out / f"{self._name}.tar.gz")
        shutil.rmtree(self._running, ignore_errors=True)

    def _write(self) -> None:
        draft = self._out / f"{self._name}.draft"
        draft.write_text(json.dumps(self._found, indent=1))
        draft.replace(self._out / f"{self._name}.json")


def _copy(output: IO[bytes], log: Path) -> None:
    """Copy lines to the terminal and to the log as they come."""
    with log.open("wb", buffering=0) as file:
        for line in output:
            file.write(line)
            sys.stdout.write(line.decode(errors="replace"))
            sys.stdout.flush()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End all processes of a step: SIGTERM first, then SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(GRACE_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _stop(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def main() -> int:
    """Run one call, or all three after another; what follows ``--`` goes to the benches."""
    ours, sizes = sys.argv[1:], tuple[str, ...]()
    if "--" in ours:
        at = ours.index("--")
        ours, sizes = ours[:at], tuple(ours[at + 1 :])
    parser = argparse.ArgumentParser()
    parser.add_argument("call", choices=(*CALLS, "all"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--packs", type=Path, required=True)
    parser.add_argument("--limit", type=float, required=True, help="seconds, of each call")
    given = parser.parse_args(ours)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    gpu = _has_gpu()
    failed = False
    for name in CALLS if given.call == "all" else (given.call,):
        call = Call(name, given.out, given.packs, given.limit)
        if not gpu:
            call.skip("the GPU: there is none, so the tiny pack runs on the CPU")
        steps = {"smoke": smoke, "engine": engine, "fleet": fleet}[name]
        for step in steps(gpu, sizes):
            call.run(step)
        call.show()
        failed = failed or bool(call.failed)
    return int(failed)


def _has_gpu() -> bool:
    """Ask in another process, so that this one uses no device memory."""
    asked = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
