"""Prints the reports of the engine and the fleet, shortened."""

from typing import Any

from rich.console import Console
from rich.table import Table

from bench.report import Report

_COLUMNS = (
    *(
        "load",
        "turns",
        "first p50",
        "p95",
        "p99 ms",
        "audible p50",
        "1st piece",
        "underruns (worst ms)",
    ),
    *("RTF p50", "x real time", "CPU s/s", "stop p95", "step ms", "rows: step", "flow", "MiB"),
)

_SHOWN = ("load", "stop to the", "server and", "CUDA calls")


def show(report: Report, console: Console) -> None:
    """Print the levels, the batches and figures with a target. All others are in the JSON file."""
    console.print()
    if report.series["levels"]:
        _levels(report.title, report.series["levels"], console)
    for name, levels in report.series.get("baselines", {}).items():
        _levels(f"baseline: {name}", levels, console)
    if "batching" in report.series:
        _batching(report.series["batching"], console)
    for one in report.figures:
        if one.target is not None or one.name.startswith(_SHOWN):
            verdict = {None: "", True: ", met", False: ", NOT met"}[one.met]
            target = "" if one.target is None else f" (at most {one.target:.3g}{verdict})"
            console.print(f"{one.name}: {one.value:.3g} {one.unit}{target}", highlight=False)


def _levels(title: str, levels: list[Any], console: Console) -> None:
    rows = [_row(level) for level in levels]
    filled = [n for n in range(len(_COLUMNS)) if any(row[n] != "-" for row in rows)]
    table = Table(title=title, title_justify="left")
    for n in filled:
        table.add_column(_COLUMNS[n], justify="right" if n else "left")
    for row in rows:
        table.add_row(*(row[n] for n in filled))
    console.print(table)


def _row(level: Any) -> list[str]:
    first, audible, stop = level["first"], level["audible"], level["stop"]
    more = level["more"]
    greedy = level["load"] == "greedy"
    memory = more.get("memory_mb", {})
    return [
        f"{level['load']} {level['sessions']:g}",
        f"{level['turns']}" + (f" ({level['failed']} failed)" if level["failed"] else ""),
        *([f"{first[which]:.0f}" for which in ("p50", "p95", "p99")] if first else ["-"] * 3),
        f"{audible['p50']:.0f}" if audible else "-",
        f"{level['first_piece']['p50']:.0f}" if level["first_piece"] else "-",
        "-" if greedy else f"{level['underruns']} ({level['worst_underrun_ms']:.0f})",
        f"{level['rtf']['p50']:.3f}" if greedy and level["rtf"] else "-",
        f"{level['x_real_time']:.2f}",
        f"{more['cpu_s'] / level['audio_s']:.3f}" if "cpu_s" in more and level["audio_s"] else "-",
        f"{stop['p95']:.1f}" if stop else "-",
        f"{more['decode_step_ms']:.2f}" if "decode_step_ms" in more else "-",
        f"{more['decode_rows']:.1f}" if "decode_rows" in more else "-",
        f"{more['stages']['flow']['mean_rows']:.1f}" if "stages" in more else "-",
        f"{max(memory.values()):.0f}" if memory else "-",
    ]


def _batching(batching: dict[str, Any], console: Console) -> None:
    parts = {name: points for name, points in batching.items() if name != "operations"}
    table = Table(title="one batch, by sessions in it: ms (and tokens or audio s a second)")
    table.add_column("part")
    rows = [point["rows"] for point in next(iter(parts.values()))]
    for count in rows:
        table.add_column(f"{count}", justify="right")
    for name, points in parts.items():
        table.add_row(name, *(f"{p['ms']:.2f} ({p['per_second']:.0f})" for p in points))
    for name in next(iter(batching["operations"].values())):
        found = {rows: of[name]["launches"] for rows, of in batching["operations"].items()}
        table.add_row(f"launches, {name}", *(str(found.get(f"{n}", "")) for n in rows))
    console.print(table)
