"""The progress of a download, on stderr."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

if TYPE_CHECKING:
    from voicefleet.worker.voicepacks import hub_fetch


@contextmanager
def shown() -> "Generator[hub_fetch.Progress]":
    """On a terminal a bar for each file; elsewhere a line for each file once it is complete."""
    console = Console(stderr=True, markup=False, highlight=False)
    if not console.is_terminal:
        yield _line
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bars: dict[str, TaskID] = {}
    with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:

        def advance(path: str, have: int, total: int | None) -> None:
            if path not in bars:
                bars[path] = progress.add_task(path, total=total)
            progress.update(bars[path], completed=have, total=total)

        yield advance


def _line(path: str, have: int, total: int | None) -> None:
    if have == total:
        print(f"{path}: {have} bytes", file=sys.stderr)
