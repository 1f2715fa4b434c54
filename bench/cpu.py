"""What a frame costs: processor time of worker and server, and where in the worker it goes."""

import signal
import sys
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from bench.plan import Plan
from bench.report import Figure, Report, figure
from bench.sampler import MEAN_S, Samples
from bench.steady_state import SteadyState, observe
from bench.testbed import TONE, testbed
from bench.worker_parts import shares
from voicefleet.schemas.audio import FRAMES_PER_S

MODEL: Final = "tone-test"
JUDGED_AT: Final = 64
TARGET_US: Final = 25.0


def run(plan: Plan) -> Report:
    """Watch processor time at ``JUDGED_AT`` sessions and at the sweep's most."""
    figures: list[Figure] = []
    points: list[dict[str, object]] = []
    for sessions in sorted({JUDGED_AT, max(plan.sessions)}):
        with testbed(TONE, MODEL, f"engine.tone.slots={sessions}") as bed:
            state = observe(bed, sessions, plan.seconds)
        parts = _parts(sessions, plan.seconds)
        figures += _figures(state, parts)
        points.append(
            {
                "sessions": sessions,
                "worker_us": state.worker_us_per_frame,
                "server_us": state.server_us_per_frame,
                "parts": parts,
            }
        )
    return Report(
        bench="cpu",
        title="Processor time a frame",
        conditions=(
            f"tone engine at rtf 0, 48 kHz, {plan.seconds:g} s of steady state; user and system "
            "time of all threads, over the frames that arrived in that time",
            "the server's share is for one append and one delivery of each frame",
            "sessions and frames a core: one core divided by the cost of a frame; that a worker "
            "so full keeps its grid was not measured",
            "the parts are the shares in a second run under a profiler that samples the main "
            f"thread at random, every {MEAN_S * 1000:g} ms in the mean, times the cost measured "
            "without it",
        ),
        figures=tuple(figures),
        series={"points": points},
    )


def _figures(state: SteadyState, parts: dict[str, float]) -> list[Figure]:
    at = f"{state.sessions} sessions"
    cost = state.worker_us_per_frame
    target = TARGET_US if state.sessions == JUDGED_AT else None
    return [
        figure(f"{at}, worker a frame", cost, "us", target=target, samples=state.frame_count),
        *(figure(f"{at}, of which {part}", share * cost, "us") for part, share in parts.items()),
        figure(f"{at}, worker's share of a core", state.worker_share * 100, "%"),
        figure(f"{at}, sessions a worker core", 1e6 / cost / FRAMES_PER_S, ""),
        figure(f"{at}, server a frame", state.server_us_per_frame, "us"),
        figure(f"{at}, frames/s a server core", 1e6 / state.server_us_per_frame, ""),
    ]


def _parts(sessions: int, seconds: float) -> dict[str, float]:
    """Shares of the worker's parts, from a run under the sampler."""
    return shares(sampled(sessions, seconds))


def sampled(sessions: int, seconds: float) -> Samples:
    """Where a worker's time goes in a steady state."""
    with tempfile.TemporaryDirectory() as directory:
        stacks = Path(directory, "stacks.json")
        command = (sys.executable, "-m", "bench.sampled_worker", str(stacks))
        slots = f"engine.tone.slots={sessions}"
        with testbed(TONE, MODEL, slots, command=command) as bed:
            observe(
                bed,
                sessions,
                seconds,
                begun=lambda: bed.worker.send_signal(signal.SIGUSR1),
                ended=lambda: bed.worker.send_signal(signal.SIGUSR2),
            )
        return msgspec.json.decode(stacks.read_bytes(), type=Samples)
