"""How signals end a command: in good order, once it has begun, and at once before and after.

SIGINT is obeyed even where it is ignored, as it is for what a shell script starts with ``&``.
"""

import os
import signal
import threading
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any, Final

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal ended the command. ``status`` is the exit status that says so."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.status = 128 + signum


def end_at_once() -> None:
    """Nothing needs to be cleaned up: from now on a signal ends the process without a word."""
    _handle(_exit)


def end_in_order() -> None:
    """From now on a signal raises ``Interrupted`` where the program is; a second ends at once."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        end_at_once()
        raise Interrupted(signum)

    _handle(interrupt)


async def cancelled_by_signals(command: Callable[[], Awaitable[Any]]) -> Any:
    """Run a command in the event loop; a signal cancels it, a second one ends the process.

    Raises:
        Interrupted: The command was cancelled, and has cleaned up.
    """
    import asyncio  # noqa: PLC0415 this module is there before anything that takes time

    import anyio  # noqa: PLC0415

    received = 0
    # A scope, and not the cancelling of the task: it insists, and does not break into shields.
    with anyio.CancelScope() as scope:
        loop = asyncio.get_running_loop()

        def cancel(signum: int, frame: FrameType | None) -> None:
            nonlocal received
            end_at_once()
            received = signum
            loop.call_soon_threadsafe(scope.cancel)

        _handle(cancel)
        try:
            return await command()
        finally:
            end_at_once()
    raise Interrupted(received)


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    if threading.current_thread() is not threading.main_thread():
        return  # which alone may say what signals do
    for signum in _ENDING:
        # Who starts us with nohup wants us to outlive the terminal.
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, handler)


def _exit(signum: int, frame: FrameType | None) -> None:
    os._exit(128 + signum)
