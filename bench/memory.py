"""A worker's memory over many turns: what each turn leaves behind.

Short turns, each of a session of its own, a slotful at a time. The slope is a straight line
through the resident set after a warm-up, when allocator and caches have their size.
"""

import time
from typing import Final

import numpy as np

from bench.audio_stream import Kind, entries
from bench.plan import Plan
from bench.report import Report, figure
from bench.resp import Connection, pack
from bench.testbed import TONE, Testbed, testbed

MODEL: Final = "tone-test"
TEXT: Final = "One short turn, and gone."
SLOTS: Final = 16
WARM_UP: Final = 1000
"""Warm-up turns, which do not count."""

TARGET_MB: Final = 1.0
"""MB per 1000 turns: half a frame for each turn. The allocator alone moves in steps of that size,
and anything of a turn that stays behind, a task, an outbox, a frame, is more."""

_MB: Final = 1e6


def run(plan: Plan) -> Report:
    """Speak ``plan.turns`` turns after the warm-up and watch the worker's resident set."""
    warm_up = min(WARM_UP, plan.turns)
    with testbed(TONE, MODEL, f"engine.tone.slots={SLOTS}") as bed:
        begin = time.monotonic()
        turns, rss = _watch(bed, warm_up + plan.turns)
        seconds = time.monotonic() - begin
    settled = turns >= warm_up
    slope, at_zero = np.polyfit(turns[settled] / 1000, rss[settled], 1)
    return Report(
        bench="memory",
        title=f"Resident set of a worker over {plan.turns} turns",
        conditions=(
            f"tone engine at rtf 0, lead 0, text {TEXT!r}, a new session for each turn, "
            f"{SLOTS} at a time, {len(turns) * SLOTS / seconds:.0f} turns a second",
            f"the slope is fitted to the last {plan.turns} turns, after {warm_up} to warm up",
        ),
        figures=(
            figure(
                "slope, MB per 1000 turns",
                float(slope),
                "MB",
                target=TARGET_MB,
                samples=int(settled.sum()),
            ),
            figure("after the first turns", float(rss[0]), "MB"),
            figure("after the warm-up", float(rss[settled][0]), "MB"),
            figure("at the end", float(rss[-1]), "MB"),
            figure("highest", float(rss.max()), "MB"),
        ),
        series={
            "turns": turns.tolist(),
            "rss_mb": rss.tolist(),
            "slope_mb_per_1000": float(slope),
            "fitted_mb_at_zero": float(at_zero),
        },
    )


def _watch(bed: Testbed, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Turns spoken and the resident set in MB, after each slotful."""
    turns: list[int] = []
    rss: list[float] = []
    with bed.connect() as connection:
        for first in range(0, count, SLOTS):
            sessions = [f"short-{i}" for i in range(first, min(first + SLOTS, count))]
            _speak(bed, connection, sessions)
            turns.append(first + len(sessions))
            rss.append(bed.worker.memory_info().rss / _MB)
    return np.array(turns), np.array(rss)


def _speak(bed: Testbed, connection: Connection, sessions: list[str]) -> None:
    """One turn in each session, to its end."""
    for session in sessions:
        connection.call(
            *("XADD", bed.keys.requests(bed.model), "*"),
            *("session", session, "text", TEXT, "lead_ms", 0),
        )
    at = {bed.keys.audio(session).encode(): b"0-0" for session in sessions}
    while at:
        connection.send(pack("XREAD", "BLOCK", 0, "STREAMS", *at, *at.values()))
        reply, _ = connection.receive()
        for stream in reply:
            for entry in entries(stream):
                at[stream[0]] = entry.id
                if entry.kind is Kind.END:
                    del at[stream[0]]
