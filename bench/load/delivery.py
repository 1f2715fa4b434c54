"""How frames arrived at the listeners of live sessions over a period of time."""

import msgspec
import numpy as np

from bench.listener import Arrivals
from bench.load.call import gaps_ms, off_grid_ms
from bench.percentiles import Percentiles


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """Distances of frames from the 20 ms grid (ms), and gaps in playback.

    ``gaps`` counts frames that arrived after their time to be played, ``listeners`` the sessions
    that had any.
    """

    frames: int
    off_grid: Percentiles
    gaps: int
    listeners: int
    longest_gap_ms: float

    @property
    def gap_share(self) -> float:
        """Gaps per frame."""
        return self.gaps / self.frames


def delivery(arrivals: Arrivals, begin_ns: int, end_ns: int) -> Delivery:
    """What arrived between two moments (monotonic ns), of turns read from their start.

    Raises:
        ValueError: No frame arrived in that time.
    """
    distances: list[np.ndarray] = []
    gaps: list[np.ndarray] = []
    listeners: set[int] = set()
    for turn in arrivals.frames_between(0, end_ns).turns():
        inside = turn.at >= begin_ns
        if not inside.any():
            continue
        silences = gaps_ms(turn.n, turn.at)[inside]
        distances.append(np.abs(off_grid_ms(turn.n[inside], turn.at[inside])))
        gaps.append(silences)
        if silences.any():
            listeners.add(int(turn.session[0]))
    if not distances:
        raise ValueError("no frame arrived")
    all_gaps = np.concatenate(gaps)
    return Delivery(
        frames=len(all_gaps),
        off_grid=Percentiles.of(np.concatenate(distances)),
        gaps=int((all_gaps > 0).sum()),
        listeners=len(listeners),
        longest_gap_ms=float(all_gaps.max()),
    )
