"""Blocking inference in threads: so many at once, the most urgent first, stopped when cancelled."""

from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Protocol, TypeVar

import anyio
import anyio.lowlevel
from anyio import CapacityLimiter, to_thread

T = TypeVar("T")


class Interrupt(Protocol):
    """Makes a running inference return early: ONNX Runtime's ``RunOptions``. Serves one step."""

    terminate: bool


@dataclass(order=True)
class _Place:
    """A step that waits for a thread: when its result is needed, and its place in the arrivals."""

    deadline: float
    number: int
    woken: anyio.Event = field(default_factory=anyio.Event, compare=False)


class InferencePool:
    """Runs inferences of many turns in at most ``threads`` threads, the earliest deadline first.

    A turn comes back for each of its steps, so that turns share the threads step by step. A step
    that has begun is not put aside for a more urgent one.
    """

    def __init__(self, threads: int) -> None:
        self._limiter = CapacityLimiter(threads)
        self._free = threads
        self._queue: list[_Place] = []
        self._arrivals = count()
        self._under_way: set[Interrupt] = set()
        self._idle = anyio.Event()

    async def run(self, step: Callable[[], T], interrupt: Interrupt, deadline: float = 0.0) -> T:
        """Run ``step`` in a thread and return its result.

        Cancellation sets ``interrupt``, which makes the step end early, and waits until it has:
        no thread is ever left behind. What the step raises is raised here.

        Args:
            step: The blocking work.
            interrupt: Ends ``step`` early.
            deadline: When its result is needed, in seconds of ``anyio.current_time()``. Of steps
                that wait for a thread, the one with the earliest goes first; of equals, the first
                to come.
        """
        self._under_way.add(interrupt)
        try:
            await self._take_thread(deadline)
            try:
                outcome = await self._supervise(step, interrupt)
            finally:
                self._give_thread()
        finally:
            self._under_way.discard(interrupt)
            if not self._under_way:
                self._idle.set()
                self._idle = anyio.Event()
        await anyio.lowlevel.checkpoint_if_cancelled()
        if isinstance(outcome, _Raised):
            raise outcome.error
        return outcome

    async def stop(self) -> None:
        """Interrupt all steps, running or waiting, and return when no thread is busy any more."""
        while self._under_way:
            for interrupt in self._under_way:
                interrupt.terminate = True
            await self._idle.wait()

    async def _take_thread(self, deadline: float) -> None:
        """Wait until a thread is free and nothing that waits is more urgent."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        place = _Place(deadline, next(self._arrivals))
        heappush(self._queue, place)
        try:
            while not (self._free and self._queue[0] is place):
                place.woken = anyio.Event()
                await place.woken.wait()
        except BaseException:
            self._queue.remove(place)
            heapify(self._queue)
            self._wake()
            raise
        heappop(self._queue)
        self._free -= 1
        self._wake()

    def _give_thread(self) -> None:
        """Offer a thread to the most urgent step.

        It takes the thread when it wakes: the turn that gave it comes back with its next step
        before that, and keeps the thread if it is the more urgent.
        """
        self._free += 1
        self._wake()

    def _wake(self) -> None:
        if self._free and self._queue:
            self._queue[0].woken.set()

    async def _supervise(self, step: Callable[[], T], interrupt: Interrupt) -> "T | _Raised":
        outcome: T | _Raised = _Raised(RuntimeError("the step did not run"))
        async with anyio.create_task_group() as group:
            group.start_soon(_interrupt_when_cancelled, interrupt)
            # anyio shields this wait once the step runs; the task beside it hears of cancellation.
            outcome = await to_thread.run_sync(_outcome, step, limiter=self._limiter)
            group.cancel_scope.cancel()
        return outcome


class _Raised:
    """An error on its way around the task group, which would wrap it in an ExceptionGroup."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _outcome(step: Callable[[], T]) -> "T | _Raised":
    try:
        return step()
    except Exception as error:
        return _Raised(error)


async def _interrupt_when_cancelled(interrupt: Interrupt) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        interrupt.terminate = True
