"""Records as a table for people or JSON for programs."""

import sys
from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.table import Table

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON.")]


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns on stdout, as wide as they need to be where nobody looks through a window."""
    table = Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*("-" if cell is None or cell == "" else str(cell) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 250, markup=False, highlight=False)
    console.print(table)


def print_json(value: object) -> None:
    """``value`` as indented JSON on stdout."""
    print(msgspec.json.format(msgspec.json.encode(value)).decode())


def milliseconds(value: float | None) -> str | None:
    """A latency."""
    return None if value is None else f"{value:.0f} ms"


def age(then_ms: int, now_ms: int) -> str | None:
    """How long ago something was, roughly."""
    if not then_ms:
        return None
    seconds = max(now_ms - then_ms, 0) / 1000
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
