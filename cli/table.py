"""Records as a table for people or JSON for programs."""

import sys
from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

_UNBOUNDED = 1_000_000

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON.")]


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table, or a block of lines for each row where the terminal is too narrow for it.

    Nothing is cut and no line broken, so that what is printed can be copied and searched.
    """
    texts = [["-" if cell is None or cell == "" else str(cell) for cell in row] for row in rows]
    table = Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in texts:
        table.add_row(*row)
    console = Console(markup=False, highlight=False)
    unbounded = console.options.update(max_width=_UNBOUNDED)
    needed = Measurement.get(console, unbounded, table).maximum
    if needed <= console.width or not sys.stdout.isatty():
        console.width = needed
        console.print(table)
        return
    indent = max(map(len, headings)) + 2
    blocks = [
        "\n".join(f"{heading:<{indent}}{cell}" for heading, cell in zip(headings, row, strict=True))
        for row in texts
    ]
    print("\n\n".join(blocks))


def print_json(value: object) -> None:
    """Print a value as indented JSON."""
    print(msgspec.json.format(msgspec.json.encode(value)).decode())


def milliseconds(value: float | None) -> str | None:
    """A latency as text."""
    return None if value is None else f"{value:.0f} ms"


def age(then_ms: int, now_ms: int) -> str | None:
    """Roughly how long ago something was; ``None`` where ``then_ms`` is 0."""
    if not then_ms:
        return None
    seconds = max(now_ms - then_ms, 0) / 1000
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
