"""Frame jitter: the distance of frames from their 20 ms grid at the reader.

A turn's grid is fitted to it: the median of (arrival - n x 20 ms) is where the grid begins, and a
frame's deviation is its distance from its place in the grid, early or late. Only the paced part
of a turn counts, after its lead has left.
"""

from typing import Final

import numpy as np

from bench.percentiles import Percentiles
from bench.plan import Plan
from bench.report import Figure, Report, percentile_figures
from bench.steady_state import SteadyState, observe
from bench.testbed import TONE, testbed
from voicefleet.schemas.audio import FRAME_MS, FRAMES_PER_S
from voicefleet.worker.config.sections import WorkerConfig

MODEL: Final = "tone-test"
JUDGED_AT: Final = 64
TARGET_P95_MS: Final = 3.0


def run(plan: Plan) -> Report:
    """Sweep the number of sessions on one worker."""
    figures: list[Figure] = []
    points: list[dict[str, float]] = []
    for sessions in plan.sessions:
        with testbed(TONE, MODEL, f"engine.tone.slots={sessions}") as bed:
            state = observe(bed, sessions, plan.seconds)
        found = Percentiles.of(np.abs(deviations_ms(state)))
        targets = {"p95": TARGET_P95_MS} if sessions == JUDGED_AT else {}
        figures += percentile_figures(f"{sessions} sessions", found, "ms", **targets)
        points.append(
            {
                "sessions": sessions,
                "p50": found.p50,
                "p95": found.p95,
                "p99": found.p99,
                "max": found.max,
                "expected_frames": sessions * state.seconds * FRAMES_PER_S,
                "frames": state.frame_count,
                "worker_share": state.worker_share,
                "server_share": state.server_share,
                "listener_share": state.frames.cpu_share,
            }
        )
    lead = WorkerConfig().lead_ms
    shares = ", ".join(f"{p['sessions']:.0f}: {p['listener_share']:.0%}" for p in points)
    return Report(
        bench="jitter",
        title="Frame arrivals at the reader, distance from the 20 ms grid",
        conditions=(
            f"one worker, tone engine at rtf 0, 48 kHz, lead {lead} ms: what is late by less than "
            "the lead is not heard",
            f"{plan.seconds:g} s of steady state for each number of sessions; the grid is fitted "
            "to each turn by the median",
            "one listener reads all sessions with one blocked XREAD; its own share of a core, "
            f"which all of this includes: {shares}",
        ),
        figures=tuple(figures),
        series={"points": points},
    )


def deviations_ms(state: SteadyState) -> np.ndarray:
    """Every frame's distance from its turn's grid; positive is late."""
    offsets: list[np.ndarray] = []
    for turn in state.frames.turns():
        from_grid = turn.at / 1e6 - turn.n * FRAME_MS
        offsets.append(from_grid - np.median(from_grid))
    return np.concatenate(offsets)
