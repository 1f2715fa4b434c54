"""One picture for each bench, drawn from its report's series."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import control, cpu, first_frame, full_fleet, jitter, piper
from bench.load import plots as load_plots
from bench.report import Record

mpl.use("Agg")

_GREY: Final = "#999999"
_STYLE: Final[dict[Any, Any]] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.axisbelow": True,
    "font.size": 9,
    "legend.frameon": False,
}

Series = Mapping[str, Any]


def draw(record: Record, directory: Path) -> Path:
    """Draw ``<bench>.png``."""
    report = record.report
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8, 4.2), dpi=150, layout="constrained")
        _DRAWINGS[report.bench](figure, report.series)
        figure.suptitle(report.title, fontsize=11)
        figure.supxlabel(record.machine.line, fontsize=5, color=_GREY, x=0.01, ha="left")
        path = directory / f"{report.bench}.png"
        figure.savefig(path)
    return path


def _first_frame(figure: Figure, series: Series) -> None:
    _distributions(figure.subplots(), series, first_frame.TARGETS)


def _control(figure: Figure, series: Series) -> None:
    _distributions(figure.subplots(), series, control.TARGETS)


def _full_fleet(figure: Figure, series: Series) -> None:
    controls, waits = figure.subplots(1, 2)
    _distributions(controls, series["controls"], full_fleet.TARGETS)
    _distributions(waits, series["waits"], {})


def _distributions(axes: Axes, series: Series, targets: Mapping[str, float]) -> None:
    """How many of the samples are below a time, and the targets as points to be left of."""
    for name, samples in series.items():
        ordered = np.sort(samples)
        share = np.arange(1, len(ordered) + 1) / len(ordered) * 100
        axes.step(ordered, share, where="post", label=f"{name} (n = {len(ordered)})")
    for which, most in targets.items():
        at = float(which.removeprefix("p"))
        axes.plot(most, at, marker="<", color="black", linestyle="none")
        axes.annotate(
            f"target {which}: {most:g} ms", (most, at), (-4, -13), textcoords="offset points"
        )
    longest = max(float(np.percentile(samples, 99)) for samples in series.values())
    axes.set(xlabel="ms", ylabel="% of samples", ylim=(0, 101))
    axes.set_xlim(0, 1.1 * max([longest, *targets.values()]))
    axes.legend(loc="lower right")


def _jitter(figure: Figure, series: Series) -> None:
    points = series["points"]
    sessions = [point["sessions"] for point in points]
    distance, load = figure.subplots(1, 2)
    for which in ("p50", "p95", "p99", "max"):
        distance.plot(sessions, [point[which] for point in points], marker="o", label=which)
    distance.plot(
        jitter.JUDGED_AT, jitter.TARGET_P95_MS, marker="v", color="black", linestyle="none"
    )
    distance.annotate(
        f"target p95: {jitter.TARGET_P95_MS:g} ms",
        (jitter.JUDGED_AT, jitter.TARGET_P95_MS),
        (6, 4),
        textcoords="offset points",
    )
    distance.set(xlabel="sessions", ylabel="distance from the grid, ms", yscale="log")
    distance.legend()
    for who in ("worker", "server", "listener"):
        load.plot(sessions, [100 * p[f"{who}_share"] for p in points], marker="o", label=who)
    load.set(xlabel="sessions", ylabel="% of one core", ylim=(0, None))
    load.legend()


def _cpu(figure: Figure, series: Series) -> None:
    points = series["points"]
    axes = figure.subplots()
    labels = [f"{point['sessions']} sessions" for point in points]
    left = np.zeros(len(points))
    for part in points[0]["parts"]:
        cost = np.array([point["worker_us"] * point["parts"].get(part, 0.0) for point in points])
        axes.barh(labels, cost, left=left, label=part, height=0.5)
        left += cost
    axes.axvline(cpu.TARGET_US, color="black", linestyle="--", linewidth=1)
    axes.annotate(
        f"target at {cpu.JUDGED_AT}: {cpu.TARGET_US:g} us",
        (cpu.TARGET_US, 1),
        (4, -10),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
    )
    axes.set(xlabel="worker, us of processor time a frame")
    axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.15))


def _piper(figure: Figure, series: Series) -> None:
    first, rtf = figure.subplots(1, 2)
    width = 0.8 / len(series)
    places = np.arange(len(piper.TEXTS))
    for i, (speaker, texts) in enumerate(series.items()):
        at = places + (i - (len(series) - 1) / 2) * width
        first_ms = [
            1000 * np.median([run["first_s"] for run in texts[name]]) for name in piper.TEXTS
        ]
        rtfs = [
            np.median([run["total_s"] / run["audio_s"] for run in texts[name]])
            for name in piper.TEXTS
        ]
        first.bar(at, first_ms, width, label=speaker)
        rtf.bar(at, rtfs, width)
    for axes, label in ((first, "first audio, ms"), (rtf, "RTF: time for a second of audio, s")):
        axes.set_ylabel(label)
        axes.set_xticks(places, list(piper.TEXTS), rotation=20)
    first.legend(fontsize=7)


def _piper_together(figure: Figure, series: Series) -> None:
    together = {
        f"{n} at once": np.array([one["first_ms"] for one in heard]) for n, heard in series.items()
    }
    _distributions(figure.subplots(), together, {})


def _memory(figure: Figure, series: Series) -> None:
    axes = figure.subplots()
    turns = np.array(series["turns"])
    slope = series["slope_mb_per_1000"]
    axes.plot(turns, series["rss_mb"], label="resident set")
    axes.plot(
        turns,
        series["fitted_mb_at_zero"] + slope * turns / 1000,
        linestyle="--",
        color="black",
        linewidth=1,
        label=f"{slope:+.2f} MB per 1000 turns after the warm-up",
    )
    axes.set(xlabel="turns", ylabel="MB", ylim=(0, None))
    axes.legend(loc="lower right")


_DRAWINGS: Final[dict[str, Callable[[Figure, Series], None]]] = {
    "first_frame": _first_frame,
    "control": _control,
    "full_fleet": _full_fleet,
    "jitter": _jitter,
    "cpu": _cpu,
    "piper": _piper,
    "piper_together": _piper_together,
    "memory": _memory,
    "scale": load_plots.scale,
    "soak": load_plots.soak,
    "overload": load_plots.overload,
}
