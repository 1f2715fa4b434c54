"""The result of a bench: figures, targets, conditions and samples."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from bench.percentiles import Percentiles

if TYPE_CHECKING:  # its dependencies are not needed to read reports
    from bench.machine import Machine


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One number. ``target`` is its maximum; ``samples`` the number of samples behind it."""

    name: str
    value: float
    unit: str
    samples: int | None = None
    target: float | None = None
    met: bool | None = None


def figure(
    name: str, value: float, unit: str, *, target: float | None = None, samples: int | None = None
) -> Figure:
    """A figure, compared with its target if it has one."""
    met = None if target is None else value <= target
    return Figure(name=name, value=value, unit=unit, samples=samples, target=target, met=met)


def percentile_figures(name: str, found: Percentiles, unit: str, **targets: float) -> list[Figure]:
    """p50, p95, p99 and maximum; ``targets`` name the percentile they are for."""
    return [
        figure(
            f"{name}, {which}",
            getattr(found, which),
            unit,
            target=targets.get(which),
            samples=found.count,
        )
        for which in ("p50", "p95", "p99", "max")
    ]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One bench's result. ``conditions`` say what was measured and how, in sentences.

    ``series`` holds the samples or points that the plot shows.
    """

    bench: str
    title: str
    conditions: tuple[str, ...]
    figures: tuple[Figure, ...]
    series: dict[str, Any]


class Record(msgspec.Struct, frozen=True):
    """A report and the machine on which it was made: the JSON file of one bench."""

    machine: "Machine"
    report: Report

    def write(self, directory: Path) -> Path:
        """Write ``<bench>.json`` atomically."""
        path = directory / f"{self.report.bench}.json"
        draft = path.with_suffix(".draft")
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")
        return draft.replace(path)
