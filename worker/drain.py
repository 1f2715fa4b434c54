"""A worker's end: asked for by a signal, hurried by a second one, and over when its time is up.

The signals are obeyed as long as the event loop turns. Where it does not, or something in the
process cannot be cancelled (a model that a thread loads, say), a thread ends the process.
"""

import asyncio
import math
import os
import queue
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

import anyio

MARGIN_S = 3.0
"""What a drain may take beyond ``drain_timeout_s``: handing over, and leaving the fleet."""

HURRY_S = 0.6
"""What it may take once a second signal has come."""

LAST_RESORT_S = 0.3
"""After its limit a worker has so long to clean up before its process is ended."""


class Drain:
    """One drain. Tasks wait for ``asked`` and ``hurried``.

    ``limit`` is the scope of all that is to end: what is left of it when the time is up is
    cancelled.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.asked = anyio.Event()
        self.hurried = anyio.Event()
        self.limit = anyio.CancelScope()
        self._idle: list[anyio.CancelScope] = []

    def ask(self) -> None:
        """Begin the drain; asked again, hurry."""
        limit_s = self.timeout_s + MARGIN_S
        if self.asked.is_set():
            self.hurried.set()
            limit_s = HURRY_S
        self.asked.set()
        self.limit.deadline = min(self.limit.deadline, anyio.current_time() + limit_s)
        for scope in self._idle:
            scope.cancel()

    def while_idle(self) -> anyio.CancelScope:
        """A scope for what has nothing to hand over: cancelled as soon as a drain is asked for."""
        scope = anyio.CancelScope()
        if self.asked.is_set():
            scope.cancel()
        self._idle.append(scope)
        return scope


@contextmanager
def obeying_signals(drain: Drain) -> Generator[None]:
    """Have SIGTERM and SIGINT ask for the drain, for the time of the block, in the main thread.

    A process that was asked ends with status 0 at the latest a moment after the drain's limit.
    """
    loop = asyncio.get_running_loop()
    limits: queue.SimpleQueue[float] = queue.SimpleQueue()
    threading.Thread(target=_end_in_time, args=(limits,), daemon=True).start()
    # Not the loop's own handlers: these run even while the loop is held up.
    remaining = [drain.timeout_s + MARGIN_S]

    def ask(_number: int, _frame: FrameType | None) -> None:
        limit_s = remaining.pop() if remaining else HURRY_S
        limits.put(limit_s + LAST_RESORT_S)
        loop.call_soon_threadsafe(drain.ask)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            # What is asked again now is happening already.
            signal.signal(number, signal.SIG_IGN if drain.asked.is_set() else handler)


def _end_in_time(limits: "queue.SimpleQueue[float]") -> None:
    """End the process when the shortest of the limits is over, counted from when each came."""
    deadline = math.inf
    while True:
        try:
            left_s = None if math.isinf(deadline) else max(0.0, deadline - time.monotonic())
            limit_s = limits.get(timeout=left_s)
            deadline = min(deadline, time.monotonic() + limit_s)
        except queue.Empty:
            os._exit(0)
