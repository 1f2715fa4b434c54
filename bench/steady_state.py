"""A worker under steady load: the arrivals of its frames, and its processor time."""

import time
from collections.abc import Callable

import msgspec

from bench.cpu_time import CpuMark
from bench.listener import Arrivals
from bench.live_sessions import live_sessions
from bench.testbed import Testbed


def _nothing() -> None:
    """Does nothing."""


class SteadyState(msgspec.Struct, frozen=True):
    """The measurements of one period of steady load. Shares are of one core."""

    sessions: int
    seconds: float
    frames: Arrivals
    worker_share: float
    server_share: float

    @property
    def frame_count(self) -> int:
        """How many frames arrived."""
        return len(self.frames)

    @property
    def worker_us_per_frame(self) -> float:
        """Microseconds of the worker's processor time per frame."""
        return self.worker_share * self.seconds * 1e6 / self.frame_count

    @property
    def server_us_per_frame(self) -> float:
        """Microseconds of the server's processor time per frame: one append, one delivery."""
        return self.server_share * self.seconds * 1e6 / self.frame_count


def observe(
    bed: Testbed,
    sessions: int,
    seconds: float,
    *,
    begun: Callable[[], None] = _nothing,
    ended: Callable[[], None] = _nothing,
) -> SteadyState:
    """Let sessions speak and measure for ``seconds`` once their leads are published.

    ``begun`` and ``ended`` are called at the start and the end of that time.
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
