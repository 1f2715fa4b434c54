"""``python -m bench scale``, ``soak`` and ``overload``."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cyclopts import Parameter
from rich.console import Console

from bench import machine, table
from bench.report import Record, Report

RESULTS: Final = Path(__file__).parent / "results"

Flag = Annotated[bool, Parameter(negative="")]


def scale(
    *,
    quick: Flag = False,
    one: str | None = None,
    several: str | None = None,
    workers: int | None = None,
    seconds: float | None = None,
    out: Path = RESULTS,
) -> None:
    """Measure how many sessions workers carry, what binds, and what a large fleet would need.

    Parameters
    ----------
    quick
        Few sessions, and short: shows that everything runs.
    one
        Numbers of sessions on one worker, with commas.
    several
        Numbers of sessions on several workers, with commas.
    workers
        How many several are.
    seconds
        The length of each point.
    out
        Where JSON and picture go.
    """
    from bench.load import scale as bench  # noqa: PLC0415  each command imports its own bench

    plan = msgspec.structs.replace(
        bench.QUICK if quick else bench.ScalePlan(),
        **_given(one=_numbers(one), several=_numbers(several), workers=workers, seconds=seconds),
    )
    _report(lambda: bench.run(plan), out)


def soak(
    *,
    minutes: float = 30.0,
    callers: int | None = None,
    warm_up: float | None = None,
    seed: int | None = None,
    out: Path = RESULTS,
) -> None:
    """Keep a fleet busy with a mix of turns, and look for anything that grows.

    Parameters
    ----------
    minutes
        The length, warm-up included.
    callers
        Sessions at a time.
    warm_up
        Minutes before those that count.
    seed
        Of the mix.
    out
        Where JSON and picture go, and soak.partial.jsonl while it runs.
    """
    from bench.load import soak as bench  # noqa: PLC0415

    plan = msgspec.structs.replace(
        bench.SoakPlan.of(minutes), **_given(callers=callers, warm_up_min=warm_up, seed=seed)
    )
    out.mkdir(parents=True, exist_ok=True)
    _report(lambda: bench.run(plan, out), out)


def overload(*, quick: Flag = False, seconds: float | None = None, out: Path = RESULTS) -> None:
    """Ask a fleet for ten times what it can speak, and listen to those who spoke before.

    Parameters
    ----------
    quick
        A small fleet and a short flood: shows that everything runs.
    seconds
        The length of the flood.
    out
        Where JSON and picture go.
    """
    from bench.load import overload as bench  # noqa: PLC0415

    plan = msgspec.structs.replace(
        bench.QUICK if quick else bench.OverloadPlan(), **_given(flood_s=seconds)
    )
    _report(lambda: bench.run(plan), out)


def _given(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def _numbers(text: str | None) -> tuple[int, ...] | None:
    return tuple(map(int, text.split(","))) if text else None


def _report(measure: Callable[[], Report], out: Path) -> None:
    """Run it, write and draw the report, and print the verdict."""
    from bench import plots  # noqa: PLC0415  matplotlib, after the measurement's own imports

    console = Console(width=None if sys.stdout.isatty() else 110)
    out.mkdir(parents=True, exist_ok=True)
    here = machine.describe()  # before the benches: their own load must not count
    table.show_machine(here, console)
    report = measure()
    record = Record(here, report)
    record.write(out)
    plots.draw(record, out)
    table.show_report(report, console)
    table.show_verdict([report], console)
    console.print(f"\nJSON and picture: {out}", highlight=False)
