"""How signals end a command: in good order, once it has begun, and at once before and after.

SIGINT is obeyed even where it is ignored, as it is for what a shell script starts with ``&``.
"""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Final

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_last = signal.SIGINT


def end_at_once() -> None:
    """From now on nothing needs to be cleaned up: a signal ends the process without a word."""
    _handle(_exit)


def end_in_order() -> None:
    """From now on a signal raises ``KeyboardInterrupt``, or cancels the event loop's main task.

    A second one interrupts what cleans up.
    """
    _handle(_interrupt)
    if _is_ours():
        # The very handler that asyncio looks for, to put its own in its place.
        signal.signal(signal.SIGINT, signal.default_int_handler)


def exit_status() -> int:
    """The exit status of a command that a signal ended: 128 and the signal's number."""
    return 128 + _last


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    if not _is_ours():
        return
    for signum in _ENDING:
        # Who starts us with nohup wants us to outlive the terminal.
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, handler)


def _is_ours() -> bool:
    """Whether this is the main thread, which alone may say what signals do."""
    return threading.current_thread() is threading.main_thread()


def _exit(signum: int, frame: FrameType | None) -> None:
    os._exit(128 + signum)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    global _last  # noqa: PLW0603 signals are the process's, as this is
    _last = signal.Signals(signum)
    signal.raise_signal(signal.SIGINT)
