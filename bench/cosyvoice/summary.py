"""Summarises the results of ``bench/gpu.sh``: ``python -m bench.cosyvoice.summary DIR``.

Prints one line for each load. With ``--into DIR`` each report is written there as a file of its
own, as by the other benches, and drawn.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from bench.machine import Machine
from bench.report import Record, Report

CALLS = ("engine", "fleet")


def reports(directory: Path) -> dict[str, Any]:
    """All reports of the engine and the fleet, by the name of their bench."""
    found: dict[str, Any] = {}
    for call in CALLS:
        path = directory / f"{call}.json"
        if path.exists():
            found |= msgspec.json.decode(path.read_bytes())["reports"]
    return found


def summary(found: dict[str, Any]) -> str:
    """A table for the end of a log."""
    head = (
        "bench                      load            first p50   p95  underruns (worst)  x real time"
    )
    lines = [head]
    for record in found.values():
        report = record["report"]
        levels = [("", level) for level in report["series"]["levels"]]
        for name, alone in report["series"].get("baselines", {}).items():
            levels += [(f"{name}: ", level) for level in alone]
        if not report["series"].get("complete", True):
            lines.append(f"{report['bench']:26} (cut short)")
        for name, level in levels:
            first = level["first"] or {"p50": float("nan"), "p95": float("nan")}
            load = f"{level['load']} {level['sessions']:g}"
            late = f"{level['underruns']} ({level['worst_underrun_ms']:.0f} ms)"
            if level["stop"]:
                late = f"stop p95 {level['stop']['p95']:.1f} ms"
            lines.append(
                f"{report['bench']:26} {load:14} {first['p50']:9.0f} {first['p95']:7.0f}"
                f"  {late:18} {level['x_real_time']:10.1f}  {name}"
            )
    return "\n".join(lines)


def spread(found: dict[str, Any], directory: Path) -> None:
    """Write each report as ``<bench>.json``, and draw it where matplotlib is installed."""
    for one in found.values():
        machine = msgspec.convert(one["machine"], Machine)
        record = Record(machine, msgspec.convert(one["report"], Report))
        record.write(directory)
        # Only loads are drawn.
        if record.report.series["levels"] and find_spec("matplotlib") is not None:
            from bench.cosyvoice import plots  # noqa: PLC0415

            plots.draw(record, directory)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--into", type=Path)
    given = parser.parse_args()
    brought = reports(given.directory)
    print(summary(brought))
    if given.into is not None:
        given.into.mkdir(parents=True, exist_ok=True)
        spread(brought, given.into)
