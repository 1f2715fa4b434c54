"""When faults acted on the fleet, when none did, and when servers may have lost data."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

from verify.chaos.evidence import Evidence
from verify.chaos.journal import Fault

GRACE_S: Final = 5.0
"""How long after a fault time limits do not apply yet."""

FORGETTING_IS_SEEN_S: Final = 15.0
"""How long after a loss of data until every reader has noticed it."""

HARMLESS: Final = ("slow_reader", "dead_reader", "late_reader", "script_flush")
"""Faults that must have no effect on turns."""

OUTAGE_S: Final = 0.3
"""How long after a reader's outage until it has caught up."""

OVERRULING: Final = ("control_flood",)
"""Faults that overwrite the control values of clients."""

KILLING: Final = ("poison",)
"""Sabotage that affects every turn of the same worker."""


class QuietPeriods:
    """The run's periods with and without faults, on the monotonic clock."""

    def __init__(self, evidence: Evidence, sabotage: Iterable[Fault] = ()) -> None:
        injected = [fault for fault in evidence.faults if not fault.skipped]
        felt = [fault for fault in injected if fault.kind not in HARMLESS]
        felt += [fault for fault in sabotage if fault.kind in KILLING]
        windows = [(fault.at, fault.until + GRACE_S) for fault in felt]
        windows += [(one.at, one.until + OUTAGE_S) for one in evidence.outages]
        self._windows = _merged(windows)
        self._begins = [at for at, _ in self._windows]
        self._forgetting = [fault for fault in injected if fault.forgets != "nothing"]
        self._overruling = [fault for fault in injected if fault.kind in OVERRULING]

    def undisturbed(self, at: float, until: float) -> float:
        """How many seconds between two moments were without faults."""
        lost = sum(
            max(0.0, min(end, until) - max(begin, at)) for begin, end in self._between(at, until)
        )
        return max(0.0, until - at) - lost

    def is_disturbed(self, at: float) -> bool:
        """Whether a fault acts at this moment, or did shortly before."""
        return any(begin <= at <= end for begin, end in self._between(at, at))

    def after(self, at: float, seconds: float) -> float:
        """The moment at which so many seconds without faults have passed."""
        moment = at
        for begin, end in self._windows[max(0, bisect_right(self._begins, at) - 1) :]:
            if end <= moment:
                continue
            if begin > moment + seconds:
                break
            seconds -= max(0.0, begin - moment)
            moment = end
        return moment + seconds

    def forgot(self, at: float, until: float | None = None) -> set[str]:
        """The losses of data (``tail``, ``all``) that may show between two moments."""
        return {
            fault.forgets
            for fault in self._forgetting
            if fault.at <= (at if until is None else until)
            and at <= fault.until + FORGETTING_IS_SEEN_S
        }

    def forgot_all_at(self, seen_at: float) -> float:
        """The end of the latest total loss of data that began before ``seen_at``."""
        begun = (
            fault.until
            for fault in self._forgetting
            if fault.forgets == "all" and fault.at <= seen_at
        )
        return max(begun, default=float("inf"))

    def overruled(self, at: float) -> float:
        """From when on a fault may have changed a control value that was set at ``at``.

        That is ``at`` itself if it was set during such a fault.
        """
        faults = [*self._forgetting, *self._overruling]
        return min(
            (max(at, fault.at) for fault in faults if fault.until + 0.5 >= at),
            default=float("inf"),
        )

    def _between(self, at: float, until: float) -> Sequence[tuple[float, float]]:
        first = max(0, bisect_right(self._begins, at) - 1)
        return self._windows[first : bisect_right(self._begins, until)]


def _merged(windows: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(windows):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    assert all(a[1] < b[0] for a, b in pairwise(merged))
    return merged
