"""Prints reports and machines in a terminal."""

from rich.console import Console
from rich.table import Table

from bench.machine import Machine
from bench.report import Figure, Report


def show_machine(machine: Machine, console: Console) -> None:
    """Print the machine."""
    console.print(machine.line, style="dim", highlight=False)


def show_report(report: Report, console: Console) -> None:
    """Print one bench's figures, targets and conditions."""
    table = Table(title=f"{report.bench}: {report.title}", title_justify="left")
    table.add_column("figure")
    for column in ("measured", "target", "samples"):
        table.add_column(column, justify="right")
    table.add_column("met")
    for one in report.figures:
        table.add_row(
            one.name,
            _amount(one.value, one.unit),
            "" if one.target is None else f"<= {_amount(one.target, one.unit)}",
            "" if one.samples is None else f"{one.samples}",
            _verdict(one),
        )
    console.print()
    console.print(table)
    for condition in report.conditions:
        console.print(f"- {condition}", style="dim", highlight=False)


def show_verdict(reports: list[Report], console: Console) -> None:
    """Print how many targets were met, and which were not."""
    judged = [(report, one) for report in reports for one in report.figures if one.met is not None]
    missed = [(report, one) for report, one in judged if not one.met]
    console.print(f"\n{len(judged) - len(missed)} of {len(judged)} targets met")
    for report, one in missed:
        console.print(f"- {report.bench}: {one.name}: {_verdict(one)}", highlight=False)


def _amount(value: float, unit: str) -> str:
    digits = max(0, 2 - (len(f"{abs(value):.0f}") - 1)) if abs(value) >= 1 else 3
    return f"{value:,.{digits}f} {unit}".strip()


def _verdict(one: Figure) -> str:
    if one.target is None:
        return ""
    return "yes" if one.met else f"no, by {_amount(one.value - one.target, one.unit)}"
