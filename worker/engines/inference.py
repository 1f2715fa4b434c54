"""Blocking inference in threads: so many at once, in turn, and stopped at once when cancelled."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import anyio
import anyio.lowlevel
from anyio import CapacityLimiter, to_thread

T = TypeVar("T")


class Interrupt(Protocol):
    """Makes a running inference return early: ONNX Runtime's ``RunOptions``. Serves one step."""

    terminate: bool


class InferencePool:
    """Runs inferences of many turns in at most ``threads`` threads, first come first served.

    A turn comes back for each of its steps, so that turns share the threads step by step.
    """

    def __init__(self, threads: int) -> None:
        self._limiter = CapacityLimiter(threads)
        self._under_way: set[Interrupt] = set()
        self._idle = anyio.Event()

    async def run(self, step: Callable[[], T], interrupt: Interrupt) -> T:
        """Run ``step`` in a thread and return its result.

        Cancellation sets ``interrupt``, which makes the step end early, and waits until it has:
        no thread is ever left behind. What the step raises is raised here.
        """
        self._under_way.add(interrupt)
        try:
            outcome = await self._supervise(step, interrupt)
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
