"""Ten times more requests than slots: the effect on speaking sessions, and the recovery.

Two floods. In the first one living sessions hold every slot: whatever waits with a deadline has to
be answered without one. In the second they hold half: the other half is contested by tenants.
"""

from typing import Final

import msgspec
import numpy as np

from bench.load.call import Answer
from bench.load.flood import (
    BUSY,
    BUSY_SHARE,
    DEADLINES_S,
    GREEDY,
    MODEST,
    PATIENT_SHARE,
    PROBE,
    PROBE_EVERY_S,
    TEXT,
    FloodPlan,
    Outcome,
    flood,
)
from bench.percentiles import Percentiles
from bench.report import Figure, Report, figure, percentile_figures

EXPIRED_P95_MS: Final = 1000.0
LATE_START_MS: Final = 250.0
"""A first frame so long after the deadline means that the turn started after it."""

NORMAL_MS: Final = 20.0
"""First frames count as normal within this of the p95 before the flood."""


class OverloadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes: see ``FloodPlan``."""

    workers: int = 2
    slots: int = 8
    times: int = 10
    per_s: float = 60.0
    modest_per_s: float = 2.0
    before_s: float = 5.0
    flood_s: float = 20.0
    after_s: float = 8.0


QUICK: Final = OverloadPlan(
    slots=2, per_s=10.0, modest_per_s=0.5, before_s=2.0, flood_s=4.0, after_s=4.0
)


def run(plan: OverloadPlan) -> Report:
    """Run both floods."""
    sizes = msgspec.structs.asdict(plan)
    slots = plan.workers * plan.slots
    full = flood(FloodPlan(**sizes, live=slots))
    half = flood(FloodPlan(**sizes, live=slots // 2))
    service_ms = _service_ms(half)
    figures = [
        *_flood_figures(f"{slots} live in {slots} slots", full),
        *_flood_figures(f"{slots // 2} live in {slots} slots", half),
        *_fairness_figures(half, service_ms),
        *_recovery_figures("all slots taken", full, slots, service_ms),
        *_recovery_figures("half taken", half, half.plan.contested, service_ms),
        *_probe_figures(half),
    ]
    return Report(
        bench="overload",
        title=f"{plan.times} times more requests than slots, and {plan.per_s:g} a second more",
        conditions=_conditions(plan, service_ms),
        figures=tuple(figures),
        series={"full": _series(full), "half": _series(half)},
    )


def _flood_figures(name: str, found: Outcome) -> list[Figure]:
    """The sessions that spoke before, and the requests with a deadline."""
    phases = {"before": found.before, "during": found.during, "after": found.after}
    figures: list[Figure] = []
    for phase, heard in phases.items():
        count = heard.frames
        figures += [
            figure(f"{name}: off the grid {phase}, p95", heard.off_grid.p95, "ms", samples=count),
            figure(f"{name}: off the grid {phase}, max", heard.off_grid.max, "ms", samples=count),
            figure(f"{name}: underruns heard {phase}", heard.gaps, "", target=0, samples=count),
        ]
    asked = found.of(GREEDY, BUSY, MODEST)
    expired = [one for one in asked if one.reason == "expired"]
    late = [one for one in asked if one.deadline_ns and one.first_ns > _latest_start(one)]
    figures += [
        figure(f"{name}: requests of the flood", len(asked), ""),
        figure(f"{name}: expired", len(expired), ""),
        figure(f"{name}: begun after their deadline", len(late), "", target=0),
        figure(
            f"{name}: answered otherwise or not at all",
            sum(not one.is_expected for one in found.answers),
            "",
            target=0,
            samples=len(found.answers),
        ),
    ]
    if expired:
        after = Percentiles.of([one.after_deadline_ms for one in expired])
        figures += percentile_figures(
            f"{name}: expired, answer after the deadline", after, "ms", p95=EXPIRED_P95_MS
        )
    return figures


def _fairness_figures(found: Outcome, service_ms: float) -> list[Figure]:
    """How the tenants were served during the flood."""
    figures: list[Figure] = []
    for tenant in (MODEST, BUSY, GREEDY):
        spoken = [one for one in found.of(tenant) if one.first_ns and one.asked_ns < found.end_ns]
        if not spoken:
            continue
        waits = Percentiles.of([one.wait_ms for one in spoken])
        targets = {"p95": service_ms} if tenant == MODEST else {}
        figures += percentile_figures(f"{tenant} tenant, wait", waits, "ms", **targets)
    served = [one for one in found.of(GREEDY, BUSY, MODEST) if 0 < one.first_ns < found.end_ns]
    for tenant in (MODEST, BUSY, GREEDY):
        asked = [one for one in found.of(tenant) if one.asked_ns < found.end_ns]
        got = [one for one in served if one in asked]
        figures.append(
            figure(
                f"{tenant} tenant, spoken of what it asked",
                100 * len(got) / max(1, len(asked)),
                "%",
                samples=len(asked),
            )
        )
    return figures


def _recovery_figures(name: str, found: Outcome, slots: int, service_ms: float) -> list[Figure]:
    """How fast waiting requests are spoken and slots become free."""
    waiting = [one for one in found.answers if one.asked_ns < found.end_ns]
    left = [one for one in waiting if one.ended_ns > found.room_ns]
    spoken = [one for one in left if one.first_ns > found.room_ns]
    last = max((one.ended_ns for one in left), default=found.room_ns)
    return [
        figure(f"{name}: waiting turns spoken after the flood", len(spoken), ""),
        figure(f"{name}: the last one answered", (last - found.room_ns) / 1e9, "s"),
        figure(f"{name}: at best", len(spoken) * service_ms / slots / 1000, "s"),
        figure(f"{name}: slots not free at the end", 0 if found.free_ns else 1, "", target=0),
    ]


def _probe_figures(found: Outcome) -> list[Figure]:
    """When a new tenant's first frame is as fast as before."""
    probes = sorted(found.of(PROBE), key=lambda one: one.asked_ns)
    before = [one.wait_ms for one in probes if one.asked_ns < found.begin_ns and one.first_ns]
    after = [one for one in probes if one.asked_ns >= found.end_ns]
    if not before or not after:
        return []
    usual = Percentiles.of(before)
    slow = [one for one in after if not one.wait_ms <= usual.p95 + NORMAL_MS]
    normal_ns = max((one.asked_ns for one in slow), default=found.end_ns)
    return [
        *percentile_figures("first frame before the flood", usual, "ms"),
        figure(
            "first frames as before, after the flood's end",
            (normal_ns - found.end_ns) / 1e9,
            "s",
            samples=len(after),
        ),
    ]


def _service_ms(found: Outcome) -> float:
    """How long a turn of the flood holds its slot on average."""
    spoken = [one for one in found.of(GREEDY, BUSY, MODEST) if one.first_ns]
    times = [(one.ended_ns - one.first_ns) / 1e6 for one in spoken]
    return float(np.mean(times)) if times else float("nan")


def _latest_start(one: Answer) -> int:
    return one.deadline_ns + int(LATE_START_MS * 1e6)


def _conditions(plan: OverloadPlan, service_ms: float) -> tuple[str, ...]:
    slots = plan.workers * plan.slots
    return (
        f"{plan.workers} workers with {plan.slots} slots each, tone engine at rtf 0; living "
        f"sessions speak for {plan.before_s:g} s before, {plan.flood_s:g} s during and "
        f"{plan.after_s:g} s after the flood, then they are stopped",
        f"the flood: {plan.times * slots} requests at once and {plan.per_s:g} a second for "
        f"{plan.flood_s:g} s, each of a session of its own, text {TEXT!r}; {PATIENT_SHARE:.0%} "
        f"have no deadline, the others one of {DEADLINES_S[0]:g} to {DEADLINES_S[1]:g} s; "
        f"{BUSY_SHARE:.0%} are of the busy tenant, the others of the greedy one",
        f"the modest tenant asks {plan.modest_per_s:g} times a second, without deadlines: less "
        "than its share of the contested slots. Its target is the time in which each slot is given "
        f"away once, {service_ms:.0f} ms, the mean time that a turn of the flood is spoken",
        f"a probe of a tenant of its own every {PROBE_EVERY_S * 1000:.0f} ms before and after the "
        f"flood, where slots are contested; normal is within {NORMAL_MS:g} ms of the p95 before",
        "at best: all slots that there are speak what still waited, without a pause between turns",
    )


def _series(found: Outcome) -> dict[str, object]:
    """Each request as ``[asked, first frame, end, deadline]``, s after the flood began."""

    def second(ns: int) -> float | None:
        return round((ns - found.begin_ns) / 1e9, 4) if ns else None

    return {
        "flood_s": found.plan.flood_s,
        "off_grid_p95_ms": [
            heard.off_grid.p95 for heard in (found.before, found.during, found.after)
        ],
        "requests": {
            tenant: [
                [
                    second(one.asked_ns),
                    second(one.first_ns),
                    second(one.ended_ns),
                    second(one.deadline_ns),
                ]
                for one in found.of(tenant)
            ]
            for tenant in (GREEDY, BUSY, MODEST, PROBE)
        },
    }
