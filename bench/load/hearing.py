"""What the listeners of living sessions heard over a stretch of time."""

import msgspec
import numpy as np

from bench.listener import Arrivals
from bench.load.call import gaps_ms, off_grid_ms
from bench.percentiles import Percentiles


class Hearing(msgspec.Struct, frozen=True, kw_only=True):
    """Distances from the 20 ms grid, and the silences that were heard.

    ``gaps`` are frames that came after their time to be played, ``listeners`` the sessions that had
    any, ``longest_gap_ms`` the longest one.
    """

    frames: int
    off_grid: Percentiles
    gaps: int
    listeners: int
    longest_gap_ms: float

    @property
    def gap_share(self) -> float:
        """Gaps for each frame."""
        return self.gaps / self.frames


def hearing(arrivals: Arrivals, begin_ns: int, end_ns: int) -> Hearing:
    """What was heard between two moments, of turns that were heard from their beginning.

    Raises:
        ValueError: No frame came in that time.
    """
    distances: list[np.ndarray] = []
    gaps: list[np.ndarray] = []
    listeners: set[int] = set()
    for turn in arrivals.frames_between(0, end_ns).turns():
        inside = turn.at >= begin_ns
        if not inside.any():
            continue
        heard = gaps_ms(turn.n, turn.at)[inside]
        distances.append(np.abs(off_grid_ms(turn.n[inside], turn.at[inside])))
        gaps.append(heard)
        if heard.any():
            listeners.add(int(turn.session[0]))
    if not distances:
        raise ValueError("nobody heard anything")
    all_gaps = np.concatenate(gaps)
    return Hearing(
        frames=len(all_gaps),
        off_grid=Percentiles.of(np.concatenate(distances)),
        gaps=int((all_gaps > 0).sum()),
        listeners=len(listeners),
        longest_gap_ms=float(all_gaps.max()),
    )
