"""How signals end a command: with a clean-up while it runs, at once before and after.

SIGINT is handled even where the process inherits it as ignored, as from a shell script's ``&``.
"""

import os
import signal
import threading
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any, Final

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal ended the command. ``status`` is the exit status that shells use for it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.status = 128 + signum


def end_at_once() -> None:
    """From now on a signal ends the process at once and silently: there is nothing to clean up."""
    _handle(_exit)


def end_in_order() -> None:
    """From now on a signal raises ``Interrupted``; a second one ends the process at once."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        end_at_once()
        raise Interrupted(signum)

    _handle(interrupt)


async def cancelled_by_signals(command: Callable[[], Awaitable[Any]]) -> Any:
    """Await a command; a signal cancels it, a second one ends the process at once.

    Raises:
        Interrupted: The command was cancelled, and has cleaned up.
    """
    import asyncio  # noqa: PLC0415 this module must import fast

    import anyio  # noqa: PLC0415

    received = 0
    # A cancel scope: unlike task.cancel() it keeps cancelling, and respects shields.
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
        return  # only the main thread may set handlers
    for signum in _ENDING:
        # nohup ignores SIGHUP, so that the process outlives its terminal.
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, handler)


def _exit(signum: int, frame: FrameType | None) -> None:
    os._exit(128 + signum)
