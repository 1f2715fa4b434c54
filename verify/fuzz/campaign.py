"""A campaign: many inputs for one target, in a process that may crash, hang or run out of memory.

    report = hunt("request", seed=1, count=1000)
    assert not report.finds

An input is drawn from its target, seed and number alone: ``replay`` draws it again. The process has
limited address space, so that a memory leak fails at once; an input that takes longer than
``HANG_S`` counts as a hang.
"""

import json
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec

from bench.testbed import ROOT
from verify.fuzz.target import Target

HANG_S: Final = 10.0
NATIVE_HANG_S: Final = 60.0
"""A process without progress for so long hangs in native code, where no signal is handled."""

_PROGRESS: Final = struct.Struct("<3Q")
"""Progress in shared memory: the present input's number, the counts of accepted and rejected."""

GROWTH_MB: Final = 48.0
"""How much resident memory may grow after the first tenth of a campaign: arenas, caches."""

CANARY: Final = "canary"
"""A file in the scratch directory that an input creates if it runs code."""

_OUT_OF_MEMORY: Final = (
    "can't allocate memory",
    "bad_alloc",
    "Failed to allocate",
    "unable to mmap",
)


class Find(msgspec.Struct, frozen=True):
    """An input that broke its target. ``times`` counts further ones at the same place."""

    target: str
    seed: int
    number: int
    what: str
    place: str
    detail: str
    times: int = 1


class Report(msgspec.Struct, kw_only=True):
    """The result of a campaign. Memory in MB, the slowest input in ms."""

    target: str
    seed: int
    inputs: int = 0
    taken: int = 0
    refused: int = 0
    seconds: float = 0.0
    growth_mb: float = 0.0
    slowest_ms: float = 0.0
    slowest: int = 0
    finds: list[Find] = []


class Hang(BaseException):
    """Raised during an input that takes too long. No target catches a ``BaseException``."""


class _Step(msgspec.Struct):
    """A line of the process's output: a find, or the counts at its end."""

    find: Find | None = None
    report: Report | None = None


def draw(target: Target, name: str, seed: int, number: int) -> Any:
    """Draw the input of this number."""
    return target.draw(Random(f"{name} {seed} {number}"))


# --- In the process ------------------------------------------------------------------------------


def run(name: str, seed: int, first: int, count: int, progress: Path) -> None:
    """Feed the inputs from number ``first`` on; print finds as they occur."""
    from verify.fuzz.targets import build

    with tempfile.TemporaryDirectory(prefix="voicefleet-fuzz-") as scratch:
        target = build(name, Path(scratch))
        _limit_memory(target.room)
        report = Report(target=name, seed=seed)
        with progress.open("r+b", buffering=0) as mark:
            _feed_all(target, report, first, count, Path(scratch), mark)
        _say(_Step(report=report))


def _feed_all(
    target: Target, report: Report, first: int, count: int, scratch: Path, mark: Any
) -> None:
    begun, resident, places = time.monotonic(), 0.0, dict[str, int]()
    for number in range(first, first + count):
        mark.seek(0)
        mark.write(_PROGRESS.pack(number, report.taken, report.refused))
        if number == first + count // 10:
            resident = _resident_mb()
        fed = time.monotonic()
        what, place, detail = feed(target, draw(target, report.target, report.seed, number))
        took_ms = (time.monotonic() - fed) * 1000
        if took_ms > report.slowest_ms:
            report.slowest_ms, report.slowest = took_ms, number
        if (scratch / CANARY).exists():
            (scratch / CANARY).unlink()
            what, place, detail = "code ran", "", ""
        report.inputs += 1
        report.taken += what == "taken"
        report.refused += what == "refused"
        if what not in ("taken", "refused"):
            signature = f"{what} {place}"
            places[signature] = places.get(signature, 0) + 1
            if places[signature] == 1:
                find = Find(report.target, report.seed, number, what, place, detail)
                _say(_Step(find=find))
    report.growth_mb = max(0.0, _resident_mb() - resident)
    report.seconds = time.monotonic() - begun


def feed(target: Target, data: Any) -> tuple[str, str, str]:
    """Feed one input: ``taken``, ``refused``, or what went wrong, where, and how."""
    try:
        with _time_limit():
            target.feed(data)
    except target.errors as error:
        if memory := _ran_out(error):
            return "too much memory", _place(memory), _said(memory)
        return "refused", "", ""
    except Hang as error:
        return "hang", _place(error), ""
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return type(error).__name__, _place(error), _said(error)
    return "taken", "", ""


@contextmanager
def _time_limit() -> Generator[None]:
    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _ran_out(error: BaseException) -> BaseException | None:
    """The shortage of memory behind a documented error, if there is one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or any(sign in str(cause) for sign in _OUT_OF_MEMORY):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def _place(error: BaseException) -> str:
    """The innermost line of our code, or of a library, in the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        f for f in frames if Path(f.filename).is_relative_to(ROOT) and ".venv" not in f.filename
    ]
    ours = [f for f in ours if "/verify/fuzz/" not in f.filename] or ours
    if not ours:
        return ""
    return f"{Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].name}"


def _said(error: BaseException) -> str:
    return ascii(str(error))[:300]


def _limit_memory(room: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + room
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _say(step: _Step) -> None:
    sys.stdout.write(json.dumps(msgspec.to_builtins(step)) + "\n")
    sys.stdout.flush()


# --- Around it -----------------------------------------------------------------------------------


def hunt(name: str, *, seed: int, count: int, first: int = 0) -> Report:
    """Feed ``count`` inputs to a target, through crashes and hangs of its process."""
    whole = Report(target=name, seed=seed)
    places: set[tuple[str, str]] = set()
    stop = first + count
    begun = time.monotonic()
    while first < stop:
        part, found, reached = _run_once(name, seed, first, stop - first)
        for find in found:
            if (find.what, find.place) not in places:
                places.add((find.what, find.place))
                whole.finds.append(find)
        whole.taken += part.taken
        whole.refused += part.refused
        whole.growth_mb = max(whole.growth_mb, part.growth_mb)
        if part.slowest_ms > whole.slowest_ms:
            whole.slowest_ms, whole.slowest = part.slowest_ms, part.slowest
        whole.inputs += reached - first
        first = reached
    whole.seconds = time.monotonic() - begun
    return whole


def _run_once(name: str, seed: int, first: int, count: int) -> tuple[Report, list[Find], int]:
    """Run one process: its counts, its finds, and the number to continue with."""
    with tempfile.TemporaryDirectory(prefix="voicefleet-fuzz-") as directory:
        progress, said = Path(directory, "progress"), Path(directory, "said")
        trouble = Path(directory, "trouble")
        progress.write_bytes(_PROGRESS.pack(first, 0, 0))
        with said.open("wb") as out, trouble.open("wb") as err:
            command = [sys.executable, "-m", "verify.fuzz", "run", name, str(seed), str(first)]
            process = subprocess.Popen(
                [*command, str(count), str(progress)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
            status = _await_end(process, progress)
        steps = [
            msgspec.json.decode(line, type=_Step)
            for line in said.read_bytes().splitlines()
            if line.startswith(b'{"find"')
        ]
        found = [step.find for step in steps if step.find is not None]
        reports = [step.report for step in steps if step.report is not None]
        if reports and status == 0:
            return reports[0], found, first + count
        number, taken, refused = _PROGRESS.unpack(progress.read_bytes())
        last_words = trouble.read_text(errors="replace")[-600:]
        what = "hang (native)" if status is None else f"process died ({status})"
        found.append(Find(name, seed, number, what, "", last_words))
        part = Report(target=name, seed=seed, taken=taken, refused=refused)
        return part, found, number + 1


def _await_end(process: "subprocess.Popen[bytes]", progress: Path) -> int | None:
    """The process's exit status; ``None`` if it had to be killed."""
    seen, since = b"", time.monotonic()
    try:
        while True:
            try:
                return process.wait(1.0)
            except subprocess.TimeoutExpired:
                now = progress.read_bytes()
                if now != seen:
                    seen, since = now, time.monotonic()
                elif time.monotonic() - since > NATIVE_HANG_S:
                    return None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
