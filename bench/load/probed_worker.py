"""A worker with a probe of its event loop: ``python -m bench.load.probed_worker FILE CONFIG``.

It is the worker that ``voicefleet worker`` runs, with a timer of its own beside it. SIGUSR1 begins
to time; SIGUSR2 writes FILE: how late the timer was called since then, and how many tasks there
are. The timer is called some 50 times a second, at random moments, since the worker's own work
comes every 20 ms. The loop rounds its waits up to a millisecond: less than that is no lag.
"""

import asyncio
import gc
import random
import signal
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from voicefleet.cli import main

MEAN_S: Final = 0.020


class Snapshot(msgspec.Struct, frozen=True):
    """A worker's internals. ``serial`` counts snapshots from 1; lags are in ms."""

    serial: int
    tasks: int
    objects: int
    lags_ms: list[float]


class LoopProbe:
    """Times the running loop and writes snapshots."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._moments = random.Random(0)
        self._lags_ms: list[float] = []
        self._timer: asyncio.TimerHandle | None = None
        self._serial = 0

    def begin(self) -> None:
        """Discard earlier lags and start timing."""
        self._lags_ms.clear()
        if self._timer is None:
            self._arm()

    def write(self) -> None:
        """Write a snapshot and stop timing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        gc.collect()
        self._serial += 1
        found = Snapshot(
            self._serial, len(asyncio.all_tasks()), len(gc.get_objects()), self._lags_ms
        )
        draft = self._path.with_suffix(".draft")
        draft.write_bytes(msgspec.json.encode(found))
        draft.replace(self._path)

    def _arm(self) -> None:
        due = time.monotonic() + self._moments.expovariate(1 / MEAN_S)
        self._timer = asyncio.get_running_loop().call_at(due, self._note, due)

    def _note(self, due: float) -> None:
        self._lags_ms.append((time.monotonic() - due) * 1000)
        self._arm()


def run(path: Path, arguments: list[str]) -> int:
    """Run the worker until it is told to end."""
    probe = LoopProbe(path)

    # Signal handlers run in the main thread, where the loop runs.
    signal.signal(
        signal.SIGUSR1, lambda *_: asyncio.get_running_loop().call_soon_threadsafe(probe.begin)
    )
    signal.signal(
        signal.SIGUSR2, lambda *_: asyncio.get_running_loop().call_soon_threadsafe(probe.write)
    )
    return main(["worker", "--config", *arguments])


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
