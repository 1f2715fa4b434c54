"""The load benches' pictures."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.load.point import FULL, STEADY_MS

Series = Mapping[str, Any]

_OUTCOMES: Final = {"spoken": "tab:blue", "expired": "tab:orange"}


def scale(figure: Figure, series: Series) -> None:
    """Distance from the grid, and who has how much of a core, over sessions."""
    points = series["points"]
    numbers = sorted({point["workers"] for point in points})
    distance, *loads = figure.subplots(1, 1 + len(numbers))
    for workers, load in zip(numbers, loads, strict=True):
        mine = [point for point in points if point["workers"] == workers]
        sessions = [point["sessions"] for point in mine]
        many = f"{workers} worker{'s' if workers > 1 else ''}"
        for which, style in (("p95", "-"), ("max", ":")):
            values = [point["heard"]["off_grid"][which] for point in mine]
            distance.plot(sessions, values, style, marker="o", label=f"{many}, {which}")
        shares = {
            "busiest worker": [100 * max(point["worker_shares"]) for point in mine],
            "all workers": [100 * sum(point["worker_shares"]) for point in mine],
            "server": [100 * point["server_share"] for point in mine],
            "reader": [100 * point["listener_share"] for point in mine],
            "the machine": [100 * point["machine_share"] for point in mine],
        }
        for who, values in shares.items():
            load.plot(sessions, values, marker="o", markersize=3, label=who)
        load.axhline(100 * FULL, color="black", linestyle="--", linewidth=1)
        load.set(title=many, xlabel="sessions", ylabel="% of one core", ylim=(0, None))
        load.legend(fontsize=6)
    distance.axhline(STEADY_MS, color="black", linestyle="--", linewidth=1)
    distance.set(xlabel="sessions", ylabel="distance from the grid, ms", yscale="log")
    distance.legend(fontsize=6)


def soak(figure: Figure, series: Series) -> None:
    """Memory and latency over the minutes."""
    memory, latency = figure.subplots(1, 2)
    samples = series["samples"]
    minutes = [one["at_s"] / 60 for one in samples]
    for i in range(len(samples[0]["workers"])):
        rss = [one["workers"][i]["rss_mb"] if one["workers"][i] else np.nan for one in samples]
        memory.plot(minutes, rss, label=f"worker {i}, resident set")
    memory.plot(minutes, [one["server_rss_mb"] for one in samples], label="server, resident set")
    memory.plot(minutes, [one["used_mb"] for one in samples], label="server, memory used")
    memory.set(xlabel="minutes", ylabel="MB", ylim=(0, None))
    counted = series["minutes"]
    for which in ("first_p50", "first_p95", "first_p99", "off_grid_p95"):
        name, _, rank = which.rpartition("_")
        label = f"{'first frame' if name == 'first' else 'off the grid'}, {rank}"
        at = [one["minute"] + 0.5 for one in counted]
        latency.plot(at, [one[which] for one in counted], marker="o", markersize=3, label=label)
    latency.set(xlabel="minutes", ylabel="ms", ylim=(0, None))
    for axes in (memory, latency):
        axes.axvspan(0, series["warm_up_min"], color="#eeeeee")
        axes.legend(fontsize=7)


def overload(figure: Figure, series: Series) -> None:
    """When each request was answered, over when it was asked."""
    for axes, which in zip(figure.subplots(1, 2), ("full", "half"), strict=True):
        _answers(axes, series[which])
        axes.set_title("all slots taken" if which == "full" else "half of the slots taken")


def _answers(axes: Axes, found: Series) -> None:
    requests = found["requests"]
    flood = [one for tenant in ("greedy", "busy") for one in requests[tenant]]
    for outcome, colour in _OUTCOMES.items():
        mine = [one for one in flood if (one[1] is not None) == (outcome == "spoken")]
        waits = [(one[1] if outcome == "spoken" else one[2]) - one[0] for one in mine]
        axes.plot([one[0] for one in mine], waits, ".", ms=3, color=colour, label=outcome)
    modest = [one for one in requests["modest"] if one[1] is not None]
    waits = [one[1] - one[0] for one in modest]
    axes.plot([one[0] for one in modest], waits, "^", ms=4, color="black", label="modest tenant")
    axes.axvspan(0, found["flood_s"], color="#eeeeee")
    axes.set(xlabel="asked, s after the flood began", ylabel="waited, s", ylim=(0, None))
    axes.legend(fontsize=7)
