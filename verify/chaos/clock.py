"""A worker's wall clock that can jump, where libfaketime is installed."""

from pathlib import Path
from typing import Final

LIBRARIES: Final = (
    Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"),
    Path("/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1"),
    Path("/usr/lib/faketime/libfaketimeMT.so.1"),
)


def library() -> Path | None:
    """libfaketime, if it is installed."""
    return next((path for path in LIBRARIES if path.exists()), None)


class FakeClock:
    """The wall clock of the processes that run with ``environment``; others keep theirs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.jump(0)

    def jump(self, seconds: int) -> None:
        """Set the clock's offset from the true time. The next reading has it."""
        fresh = self._path.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}\n", encoding="ascii")
        fresh.replace(self._path)  # atomically: it may be read at any moment

    @property
    def environment(self) -> dict[str, str]:
        """Variables for a process that is to use this clock. Its monotonic clock stays true."""
        return {
            "LD_PRELOAD": str(library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
