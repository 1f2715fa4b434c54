"""The picture of a run: pauses heard, by kind of fault."""

from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from bench.report import Record

mpl.use("Agg")

_GREY: Final = "#999999"


def draw(record: Record, directory: Path) -> Path:
    """Draw ``<bench>.png``."""
    report = record.report
    rows = sorted(report.series["rows"], key=lambda row: row["pause_longest"])
    figure = Figure(figsize=(8, 1.6 + 0.24 * len(rows)), dpi=150, layout="constrained")
    pauses, recoveries = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    places = np.arange(len(rows))
    for which, marker in (("pause_p50", "o"), ("pause_p95", "D"), ("pause_longest", "|")):
        label = which.removeprefix("pause_")
        found = [row[which] for row in rows]
        pauses.plot(found, places, marker, color="C0", markersize=5, label=label)
    pauses.hlines(places, 0, [row["pause_longest"] for row in rows], color="C0", linewidth=0.7)
    labels = [f"{row['fault']} x {row['injected']}" for row in rows]
    pauses.set_yticks(places, labels, fontsize=7)
    pauses.set(xlabel="pause heard, s", xlim=(0, None))
    pauses.legend(frameon=False, fontsize=7, loc="lower right")
    recovery = [np.nan if row["recovery"] is None else row["recovery"] for row in rows]
    recoveries.barh(places, recovery, height=0.5, color=_GREY)
    recoveries.set(xlabel="longest until full capacity, s", xlim=(0, None))
    for axes in (pauses, recoveries):
        axes.grid(color="#e5e5e5")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(report.title, fontsize=11)
    figure.supxlabel(record.machine.line, fontsize=4, color=_GREY, x=0.01, ha="left")
    path = directory / f"{report.bench}.png"
    figure.savefig(path)
    return path
