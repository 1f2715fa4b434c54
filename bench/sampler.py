"""A sampling profiler for one process, at almost no cost.

A timer interrupts at random moments and the handler records the stack. A deterministic profiler
would slow down each Python call but not the C code below it, and so distort the shares; here a long
C call counts for the Python line that made it. The moments are random (Poisson) because the worker
acts every 20 ms: a periodic timer, and the kernel's CPU-time timers, would always sample the same
part of a tick.
"""

import random
import signal
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec

MEAN_S: Final = 0.001
DEPTH: Final = 40
_SHORTEST_S: Final = 0.00005

Stack = tuple[str, ...]
"""Innermost call first, each as ``path:function``."""

_WAITING: Final = "selectors.py:EpollSelector.select"


class Samples(msgspec.Struct, frozen=True):
    """How often each stack was sampled while the process was busy."""

    stacks: list[tuple[Stack, int]]


class Sampler:
    """Counts the stacks of the main thread between ``start`` and ``stop``."""

    def __init__(self, root: Path) -> None:
        self._root = f"{root}/"
        self._stacks: Counter[Stack] = Counter()
        self._moments = random.Random(0)
        self._running = False
        self._wakeup = -1

    @property
    def samples(self) -> Samples:
        """The counts so far, without samples of an event loop that waits for events."""
        counted = self._stacks.most_common()
        return Samples([one for one in counted if not one[0][0].endswith(_WAITING)])

    def start(self) -> None:
        """Start counting."""
        # asyncio is woken by every signal; these must not wake it.
        self._wakeup = signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGALRM, self._note)
        signal.siginterrupt(signal.SIGALRM, False)
        self._running = True
        self._arm()

    def stop(self) -> None:
        """Stop counting."""
        if self._running:
            self._running = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.set_wakeup_fd(self._wakeup)

    def _arm(self) -> None:
        pause = self._moments.expovariate(1 / MEAN_S)
        signal.setitimer(signal.ITIMER_REAL, max(_SHORTEST_S, pause))

    def _note(self, _number: int, frame: FrameType | None) -> None:
        stack: list[str] = []
        while frame is not None and len(stack) < DEPTH:
            code = frame.f_code
            stack.append(f"{self._short(code.co_filename)}:{code.co_qualname}")
            frame = frame.f_back
        self._stacks[tuple(stack)] += 1
        if self._running:
            self._arm()

    def _short(self, path: str) -> str:
        """A path from this repository, from a package, or of the standard library."""
        if "site-packages/" in path:
            return path.rpartition("site-packages/")[2].removeprefix("voicefleet/")
        if path.startswith(self._root):
            return path.removeprefix(self._root).removeprefix("src/voicefleet/")
        return "/".join(path.split("/")[-2:])
