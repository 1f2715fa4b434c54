"""A worker in its stride: so many sessions, for so long, and what it cost."""

import time
from collections.abc import Callable

import msgspec

from bench.cpu_time import CpuMark
from bench.listener import Arrivals
from bench.live_sessions import live_sessions
from bench.testbed import Testbed


def _nothing() -> None:
    """Nobody wants to know."""


class SteadyState(msgspec.Struct, frozen=True):
    """What one stretch of steady load showed. Shares are of one core."""

    sessions: int
    seconds: float
    frames: Arrivals
    worker_share: float
    server_share: float

    @property
    def frame_count(self) -> int:
        """Frames that arrived in the time."""
        return len(self.frames)

    @property
    def worker_us_per_frame(self) -> float:
        """Processor time of the worker for each frame."""
        return self.worker_share * self.seconds * 1e6 / self.frame_count

    @property
    def server_us_per_frame(self) -> float:
        """Processor time of the server for each frame, taken in and given out once."""
        return self.server_share * self.seconds * 1e6 / self.frame_count


def observe(
    bed: Testbed,
    sessions: int,
    seconds: float,
    *,
    begun: Callable[[], None] = _nothing,
    ended: Callable[[], None] = _nothing,
) -> SteadyState:
    """Have sessions speak, and look on for ``seconds`` once their leads have left.

    ``begun`` and ``ended`` are called at the two ends of that time.
    """
    with live_sessions(bed, sessions, seconds) as live:
        begun()
        worker, server = CpuMark.of(bed.worker), CpuMark.of(bed.server_process)
        time.sleep(seconds)
        worker_after, server_after = CpuMark.of(bed.worker), CpuMark.of(bed.server_process)
        ended()
        arrivals = live.listener.stop()
    return SteadyState(
        sessions=sessions,
        seconds=(worker_after.at - worker.at) / 1e9,
        frames=arrivals.frames_between(worker.at, worker_after.at),
        worker_share=worker.share_until(worker_after),
        server_share=server.share_until(server_after),
    )
