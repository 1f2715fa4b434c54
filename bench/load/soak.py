"""A fleet under a steady mix of turns for half an hour: what grows, and what is left.

Nothing may: the resident sets and the server's memory are flat, latencies at the end are those of
the beginning, and when the last key has expired, descriptors, tasks and keys are as many as before.
"""

from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from bench.load.call import Answer
from bench.load.soaking import Found, SoakPlan, soak, waits
from bench.load.vitals import Vitals
from bench.percentiles import Percentiles
from bench.report import Figure, Report, figure

WORKER_MB_PER_H: Final = 10.0
"""At eight turns a second about 0.4 kB a turn: a fifth of a frame."""

SERVER_MB_PER_H: Final = 20.0
"""The server's memory depends on the last seconds' audio: a fit through it varies by some MB."""

SLOWER: Final = 1.25
"""The ratio of the last third's latencies to the first third's."""

PARTIAL: Final = "soak.partial.jsonl"


def run(plan: SoakPlan, out: Path) -> Report:
    """Soak. An interrupt from the keyboard ends it early, with what there is."""
    partial_file = out / PARTIAL
    partial_file.unlink(missing_ok=True)
    found = soak(plan, partial_file)
    report = Report(
        bench="soak",
        title=f"{found.samples[-1].at_s / 60:.3g} minutes of a steady mix of turns",
        conditions=_conditions(plan, found),
        figures=tuple(_figures(plan, found)),
        series=_series(plan, found),
    )
    partial_file.unlink()
    return report


def _figures(plan: SoakPlan, found: Found) -> list[Figure]:
    settled = [one for one in found.samples if one.at_s >= plan.warm_up_min * 60]
    settled = settled if len(settled) > 1 else found.samples
    plain = [one for one in found.answers if one.kind == "plain"]
    return [
        figure("turns answered", len(found.answers), ""),
        figure(
            "turns answered otherwise than expected, or not at all",
            sum(not one.is_expected for one in found.answers),
            "",
            target=0,
        ),
        figure(
            "plain turns with an underrun", sum(o.gap_ms > 0 for o in plain), "", target=0,
            samples=len(plain),
        ),
        *_memory_figures(settled),
        *_latency_figures(plan, found),
        *_left_figures(plan, found),
    ]  # fmt: skip


def _memory_figures(settled: list[Vitals]) -> list[Figure]:
    hours = np.array([one.at_s for one in settled]) / 3600
    figures: list[Figure] = []
    for i in range(len(settled[0].workers)):
        rss = [signs.rss_mb for one in settled if (signs := one.workers[i]) is not None]
        if len(rss) == len(settled):
            figures += _grows(f"worker {i}, resident set", hours, rss, WORKER_MB_PER_H)
    used = [one.used_mb for one in settled]
    figures += _grows("server, memory used", hours, used, SERVER_MB_PER_H)
    rss = [one.server_rss_mb for one in settled]
    return [*figures, *_grows("server, resident set", hours, rss, SERVER_MB_PER_H)]


def _grows(name: str, hours: np.ndarray, values: list[float], target: float) -> list[Figure]:
    slope = np.polyfit(hours, values, 1)[0] if len(values) > 1 else 0.0
    return [
        figure(f"{name}, mean", float(np.mean(values)), "MB", samples=len(values)),
        figure(f"{name}, slope", float(slope), "MB/h", target=target, samples=len(values)),
    ]


def _latency_figures(plan: SoakPlan, found: Found) -> list[Figure]:
    thirds = _thirds(plan, found)
    if not all(waits(third) for third in (thirds[0], thirds[-1])):
        return []
    figures: list[Figure] = []
    sources = {
        "first frame": [Percentiles.of(waits(third)) for third in (thirds[0], thirds[-1])],
        "off the grid": [
            Percentiles.of([one.off_grid_ms for one in third if one.kind == "plain"])
            for third in (thirds[0], thirds[-1])
        ],
    }
    for name, (early, late) in sources.items():
        for which in ("p50", "p95"):
            before, after = getattr(early, which), getattr(late, which)
            figures += [
                figure(f"{name}, {which}, first third", before, "ms", samples=early.count),
                figure(f"{name}, {which}, last third", after, "ms", samples=late.count),
                figure(f"{name}, {which}, last over first", after / before, "", target=SLOWER),
            ]
    return figures


def _thirds(plan: SoakPlan, found: Found) -> list[list[Answer]]:
    """Answers by the time of their requests, after the warm-up."""
    begin, end = plan.warm_up_min * 60, found.samples[-1].at_s
    thirds: list[list[Answer]] = [[], [], []]
    for one in found.answers:
        at_s = (one.asked_ns - found.began_ns) / 1e9
        if begin <= at_s < end:
            thirds[int(3 * (at_s - begin) / (end - begin))].append(one)
    return thirds


def _left_figures(plan: SoakPlan, found: Found) -> list[Figure]:
    """What is left at the end."""
    figures: list[Figure] = []
    first, last = found.first, found.last
    figures.append(
        figure("workers lost", sum(signs is None for signs in last.workers), "", target=0)
    )
    for i, (before, after) in enumerate(zip(first.workers, last.workers, strict=True)):
        if before is not None and after is not None:
            figures.append(
                figure(f"worker {i}, descriptors left", after.fds - before.fds, "", target=0)
            )
            figures.append(figure(f"worker {i}, threads more", after.threads - before.threads, ""))
    for i, (begin, end) in enumerate(zip(found.inside_first, found.inside_last, strict=True)):
        if begin is not None and end is not None:
            figures.append(figure(f"worker {i}, tasks left", end.tasks - begin.tasks, "", target=0))
            figures.append(figure(f"worker {i}, objects more", end.objects - begin.objects, ""))
    return [
        *figures,
        figure("server, descriptors left", last.server_fds - first.server_fds, "", target=0),
        figure("server, keys left", last.keys - first.keys, "", target=0),
        figure("slots taken at the end", found.slots_taken, "", target=0),
        figure("sessions at the end", found.sessions_left, "", target=0),
    ]


def _conditions(plan: SoakPlan, found: Found) -> tuple[str, ...]:
    kinds = sorted({one.kind for one in found.answers})
    counts = ", ".join(f"{kind} {sum(o.kind == kind for o in found.answers)}" for kind in kinds)
    seconds = found.samples[-1].at_s
    return (
        f"{plan.workers} workers with {plan.slots} slots, tone engine at rtf 0, one server; "
        f"{plan.callers} callers, each call in a new session, seed {plan.seed}; keys are kept for "
        f"{plan.audio_ttl_s} s; {len(found.answers) / seconds:.1f} turns a second: {counts}",
        f"signs are taken every {plan.every_s:g} s; slopes are straight lines through what came "
        f"after {plan.warm_up_min:g} min; up to {WORKER_MB_PER_H:g} MB/h count as flat for a "
        f"worker (the allocator moves in steps), {SERVER_MB_PER_H:g} MB/h for the server, whose "
        "memory is what was spoken lately",
        f"latencies may be {SLOWER:g} times those of the first third; they are of plain turns, "
        "seen by the callers",
        "left: idle fleet after the last key should have expired, over idle fleet after two calls "
        "of each caller and the expiry of their keys; threads and objects are not judged: pools "
        "fill when they are first needed",
    )


def _series(plan: SoakPlan, found: Found) -> dict[str, object]:
    minutes: list[dict[str, float]] = []
    for minute in range(int(found.samples[-1].at_s / 60) + 1):
        heard = [o for o in found.answers if minute == int((o.asked_ns - found.began_ns) / 60e9)]
        waited_ms = waits(heard)
        if waited_ms:
            waited = Percentiles.of(waited_ms)
            grid = Percentiles.of([one.off_grid_ms for one in heard if one.kind == "plain"])
            minutes.append(
                {
                    "minute": minute,
                    "turns": len(heard),
                    "first_p50": waited.p50,
                    "first_p95": waited.p95,
                    "first_p99": waited.p99,
                    "off_grid_p95": grid.p95,
                }
            )
    return {
        "warm_up_min": plan.warm_up_min,
        "samples": [msgspec.to_builtins(one) for one in found.samples],
        "minutes": minutes,
    }
