"""Pictures of the engine's and the fleet's reports."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report import Record

mpl.use("Agg")


def draw(record: Record, directory: Path) -> Path:
    """Draw ``<bench>.png``."""
    report = record.report
    rows = 2 if "batching" in report.series else 1
    figure = Figure(figsize=(10, 3.8 * rows), dpi=130, layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False)
    _first(axes[0][0], report.series)
    _throughput(axes[0][1], report.series)
    if rows > 1:
        _stages(axes[1][0], report.series)
        _batching(axes[1][1], report.series)
    figure.suptitle(report.title, fontsize=11)
    figure.supxlabel(record.machine.line, fontsize=5, color="#999999", x=0.01, ha="left")
    path = directory / f"{report.bench}.png"
    figure.savefig(path)
    return path


def _levels(series: Mapping[str, Any], load: str) -> list[Any]:
    return [level for level in series["levels"] if level["load"] == load and level["first"]]


def _first(axes: Axes, series: Mapping[str, Any]) -> None:
    closed = _levels(series, "closed")
    sessions = [level["sessions"] for level in closed]
    for which in ("p50", "p95", "p99"):
        axes.plot(sessions, [level["first"][which] for level in closed], marker="o", label=which)
    late = [level for level in closed if level["underruns"]]
    axes.plot(
        [level["sessions"] for level in late],
        [level["worst_underrun_ms"] for level in late],
        marker="x",
        linestyle="none",
        color="black",
        label="worst underrun",
    )
    axes.set(xlabel="listeners, closed loop", ylabel="first audio, ms", yscale="log")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sessions, [f"{n:g}" for n in sessions])
    axes.legend(frameon=False)
    axes.grid(color="#e5e5e5")


def _throughput(axes: Axes, series: Mapping[str, Any]) -> None:
    shown = [level for level in series["levels"] if level["load"] in ("closed", "open", "greedy")]
    labels = [f"{level['load']} {level['sessions']:g}" for level in shown]
    axes.barh(labels, [level["x_real_time"] for level in shown], height=0.6)
    for place, level in enumerate(shown):
        late = "" if level["load"] == "greedy" else f", {level['underruns']} underruns"
        label = f" {level['x_real_time']:.2f}{late}"
        axes.annotate(label, (level["x_real_time"], place), va="center", fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="x real time")
    axes.margins(x=0.3)


def _stages(axes: Axes, series: Mapping[str, Any]) -> None:
    closed = [level for level in series["levels"] if level["load"] in ("closed", "greedy")]
    labels = [f"{level['load']} {level['sessions']:g}" for level in closed]
    left = [0.0] * len(closed)
    for name in ("prefill", "decode", "flow", "recompute", "vocoder", "wait", "host"):
        stages = [level["more"]["stages"].get(name) for level in closed]
        shares = [100 * stage["share"] if stage else 0.0 for stage in stages]
        if any(shares):
            axes.barh(labels, shares, left=left, label=name, height=0.6)
            left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="% of the loop's time (host clock)")
    axes.legend(frameon=False, ncols=4, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, 1.14))


def _batching(axes: Axes, series: Mapping[str, Any]) -> None:
    for what, points in series["batching"].items():
        if what != "operations":
            base = points[0]["per_second"]
            axes.plot(
                [point["rows"] for point in points],
                [point["per_second"] / base for point in points],
                marker="o",
                label=f"{what} (1: {base:.0f}/s)",
            )
    axes.set(xlabel="sessions in a batch", ylabel="work done, against one alone")
    axes.set_xscale("log", base=2)
    axes.legend(frameon=False, fontsize=7)
    axes.grid(color="#e5e5e5")
