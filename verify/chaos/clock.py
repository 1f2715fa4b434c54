"""A worker's wall clock that can jump, where libfaketime is installed."""

from pathlib import Path
from typing import Final

LIBRARIES: Final = (
    Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"),
    Path("/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1"),
    Path("/usr/lib/faketime/libfaketimeMT.so.1"),
)


def library() -> Path | None:
    """The library, if it is here."""
    return next((path for path in LIBRARIES if path.exists()), None)


class FakeClock:
    """The wall clock of the processes that run with ``environment``; others keep theirs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.jump(0)

    def jump(self, seconds: int) -> None:
        """Be ahead of the true time by so much (behind, below 0), from the next look on."""
        fresh = self._path.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}\n", encoding="ascii")
        fresh.replace(self._path)  # as one: it is read at any moment

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to live by this clock. Its monotonic clock stays true."""
        return {
            "LD_PRELOAD": str(library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
