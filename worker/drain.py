"""End a worker on a signal: the first asks it to drain, a second one to hurry.

If the event loop hangs, or something cannot be cancelled (a thread that loads a model, for
instance), a thread ends the process when the time is up.
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
"""What a drain may take beyond ``drain_timeout_s``, to hand over and to leave the fleet."""

HURRY_S = 0.6
"""What a drain may still take after a second signal."""

LAST_RESORT_S = 0.3
"""How long after the limit of the drain the process is ended."""


class Drain:
    """A worker's drain. Its tasks wait for ``asked`` and ``hurried``.

    ``limit`` is the scope in which the worker runs: whatever runs when the time is up is cancelled.

    Args:
        timeout_s: How long turns may go on after the first signal.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.asked = anyio.Event()
        self.hurried = anyio.Event()
        self.limit = anyio.CancelScope()
        self._idle: list[anyio.CancelScope] = []

    def ask(self) -> None:
        """Begin the drain; on a second call, hurry."""
        limit_s = self.timeout_s + MARGIN_S
        if self.asked.is_set():
            self.hurried.set()
            limit_s = HURRY_S
        self.asked.set()
        self.limit.deadline = min(self.limit.deadline, anyio.current_time() + limit_s)
        for scope in self._idle:
            scope.cancel()

    def while_idle(self) -> anyio.CancelScope:
        """A scope for work that holds no request: cancelled as soon as the drain begins."""
        scope = anyio.CancelScope()
        if self.asked.is_set():
            scope.cancel()
        self._idle.append(scope)
        return scope


@contextmanager
def obeying_signals(drain: Drain) -> Generator[None]:
    """Ask for the drain on SIGTERM and SIGINT, for the time of the block. For the main thread.

    The process ends with status 0 at the latest ``LAST_RESORT_S`` after the drain's limit.
    """
    loop = asyncio.get_running_loop()
    limits: queue.SimpleQueue[float] = queue.SimpleQueue()
    threading.Thread(target=_end_in_time, args=(limits,), daemon=True).start()
    # Not the event loop's handlers: these run even while the loop is blocked.
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
            # After a drain the process is about to end: further signals have nothing to add.
            signal.signal(number, signal.SIG_IGN if drain.asked.is_set() else handler)


def _end_in_time(limits: "queue.SimpleQueue[float]") -> None:
    """End the process when the first of the limits has passed, each counted from its arrival."""
    deadline = math.inf
    while True:
        try:
            left_s = None if math.isinf(deadline) else max(0.0, deadline - time.monotonic())
            limit_s = limits.get(timeout=left_s)
            deadline = min(deadline, time.monotonic() + limit_s)
        except queue.Empty:
            os._exit(0)
