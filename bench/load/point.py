"""One point of the scale: a number of sessions and workers, frame timing and cost."""

import time
from functools import partial
from typing import Final

import msgspec
import psutil

from bench.cpu_time import CpuMark
from bench.live_sessions import START_PER_S, live_sessions
from bench.load.call import Answer, Call, Step, asking
from bench.load.callers import Callers
from bench.load.delivery import Delivery, delivery
from bench.load.fleet import MODEL, Fleet, fleet, server_info
from bench.percentiles import Percentiles
from voicefleet.schemas.audio import FRAME_MS, FRAMES_PER_S
from voicefleet.schemas.keys import Keys

PROBES_PER_S: Final = 8
PROBE_TEXT: Final = "Hi."
SPARE_SLOTS: Final = 8
"""The total time of the probes."""

START_S: Final = 15.0
"""Time for the callers' process to start on a busy machine."""

WINDOW_S: Final = 5
"""The audio window: short, so that the server trims streams as it does in the long run."""

FULL: Final = 0.9
"""A core used more than this has no time left for bursts."""

STEADY_MS: Final = float(FRAME_MS)
"""Up to this p95 distance from the grid (one frame) a fleet counts as steady."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """The measurements. Shares are of one core; times in ms."""

    workers: int
    sessions: int
    seconds: float
    heard: Delivery
    expected_frames: float
    first_frame: Percentiles
    loop_lag: Percentiles
    worker_shares: list[float]
    server_share: float
    listener_share: float
    machine_share: float
    cores: int
    server_bytes_in: float
    server_bytes_out: float
    bytes_per_entry: float

    @property
    def worker_share(self) -> float:
        """The sum over all workers."""
        return sum(self.worker_shares)

    @property
    def others_share(self) -> float:
        """The share of all other processes, the probes' included."""
        ours = self.worker_share + self.server_share + self.listener_share
        return max(0.0, self.machine_share - ours)

    @property
    def bends(self) -> bool:
        """Whether playback has gaps, or nearly so."""
        return (
            self.heard.gaps > 0
            or self.heard.off_grid.p95 > STEADY_MS
            or self.heard.frames + self.sessions < 0.99 * self.expected_frames
        )

    @property
    def binds(self) -> str:
        """What limits the number of sessions."""
        full = {
            "event loop of a worker": max(self.worker_shares),
            "server": self.server_share,
            "reader": self.listener_share,
        }
        named = [f"{who} ({share:.0%})" for who, share in full.items() if share >= FULL]
        if self.machine_share >= FULL * self.cores:
            named.append(f"the machine's {self.cores} cores ({self.machine_share:.2f} used)")
        return ", ".join(named) or "nothing"


def measure(workers: int, sessions: int, seconds: float) -> Point:
    """Let a new fleet speak ``sessions`` sessions, and measure for ``seconds``."""
    slots = -(-(sessions + SPARE_SLOTS) // workers)
    settings = (f"engine.tone.slots={slots}", f"worker.audio_window_s={WINDOW_S}")
    probes = partial(_probes, int(seconds * PROBES_PER_S), 1 / PROBES_PER_S)
    with (
        fleet(workers, *settings) as on,
        on.connect() as connection,
        live_sessions(on.bed, sessions, seconds + START_S, per_s=START_PER_S) as live,
        Callers(on.server.port, [probes]) as callers,
    ):
        for worker in on.workers:
            worker.time_loop()
        wire, marks, busy = _wire(on), _marks(on), _busy_s()
        time.sleep(seconds)
        wire_after, marks_after, busy_after = _wire(on), _marks(on), _busy_s()
        arrivals = live.listener.stop()
        lags = [lag for worker in on.workers for lag in worker.snapshot().lags_ms]
        stream = on.keys.audio(live.names[0])
        kept = connection.call("XLEN", stream)
        size = connection.call("MEMORY", "USAGE", stream, "SAMPLES", 0)
        answers = callers.rest()
    begin, end = marks[0].at, marks_after[0].at
    elapsed = (end - begin) / 1e9
    *worker_shares, server_share = [
        mark.share_until(after) for mark, after in zip(marks, marks_after, strict=True)
    ]
    return Point(
        workers=workers,
        sessions=sessions,
        seconds=elapsed,
        heard=delivery(arrivals, begin, end),
        expected_frames=sessions * elapsed * FRAMES_PER_S,
        first_frame=Percentiles.of(_waits(answers)),
        loop_lag=Percentiles.of(lags),
        worker_shares=worker_shares,
        server_share=server_share,
        listener_share=arrivals.cpu_share,
        machine_share=(busy_after - busy) / elapsed,
        cores=psutil.cpu_count() or 1,
        server_bytes_in=(wire_after[0] - wire[0]) / elapsed,
        server_bytes_out=(wire_after[1] - wire[1]) / elapsed,
        bytes_per_entry=size / kept,
    )


def _probes(count: int, every_s: float) -> list[Call]:
    keys = Keys()
    return [
        Call(
            session=f"probe-{i}",
            kind="plain",
            at_s=i * every_s,
            steps=(
                Step(
                    at_s=0.0,
                    request="r1",
                    command=asking(keys, MODEL, f"probe-{i}", "r1", text=PROBE_TEXT),
                ),
            ),
        )
        for i in range(count)
    ]


def _waits(answers: list[Answer]) -> list[float]:
    """First frames in ms. A probe without an answer counts with the time it was watched."""
    return [
        answer.wait_ms if answer.first_ns else (answer.ended_ns - answer.asked_ns) / 1e6
        for answer in answers
    ]


def _marks(on: Fleet) -> list[CpuMark]:
    processes = [*(worker.process for worker in on.workers), on.server_process]
    return [CpuMark.of(process) for process in processes]


def _wire(on: Fleet) -> tuple[int, int]:
    with on.connect() as connection:
        info = server_info(connection, "stats")
    return int(info["total_net_input_bytes"]), int(info["total_net_output_bytes"])


def _busy_s() -> float:
    """All processor time used on this machine so far, in seconds of a core."""
    times = psutil.cpu_times()
    return (
        times.user
        + times.nice
        + times.system
        + getattr(times, "irq", 0.0)
        + getattr(times, "softirq", 0.0)
    )
