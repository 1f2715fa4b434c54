"""A line on the terminal that is updated in place, and erased at the end."""

import os
import sys
import time
from types import TracebackType
from typing import Final, Self

_GAP_S: Final = 0.1
_ERASE: Final = "\r\x1b[2K"


class StatusLine:
    """On stderr, where that is a terminal; else nothing is shown. It is cut to one row.

    Call ``clear`` before other output is printed.
    """

    def __init__(self) -> None:
        self._on = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._shown_at: float | None = None

    def show(self, text: str) -> None:
        """Replace the line. Updates that follow another within 0.1 s are dropped."""
        now = time.monotonic()
        if not self._on or (self._shown_at is not None and now - self._shown_at < _GAP_S):
            return
        columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        self._write(_ERASE + text[: columns - 1])
        self._shown_at = now

    def clear(self) -> None:
        """Erase the line."""
        if self._shown_at is not None:
            self._write(_ERASE)
            self._shown_at = None

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.clear()
