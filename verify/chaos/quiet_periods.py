"""When nothing was done to the fleet, when something was, and what a server may have forgotten."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

from verify.chaos.evidence import Evidence
from verify.chaos.journal import Fault

GRACE_S: Final = 5.0
"""After a fault, until the fleet is held to everything again."""

FORGETTING_IS_SEEN_S: Final = 15.0
"""After a fault by which a server forgot, until each reader has found out."""

HARMLESS: Final = ("slow_reader", "dead_reader", "late_reader", "script_flush")
"""Faults of others that must not be felt at all."""

DEAF_S: Final = 0.3
"""What a deaf reader missed is heard by then."""

OVERRULING: Final = ("control_flood",)
"""Faults that set control keys, over the wishes of their clients."""

KILLING: Final = ("poison",)
"""Sabotage that is felt by all who share a worker with it."""


class Calm:
    """The run's times, on the monotonic clock."""

    def __init__(self, evidence: Evidence, sabotage: Iterable[Fault] = ()) -> None:
        injected = [fault for fault in evidence.faults if not fault.skipped]
        felt = [fault for fault in injected if fault.kind not in HARMLESS]
        felt += [fault for fault in sabotage if fault.kind in KILLING]
        windows = [(fault.at, fault.until + GRACE_S) for fault in felt]
        windows += [(deaf.at, deaf.until + DEAF_S) for deaf in evidence.deaf]
        self._windows = _merged(windows)
        self._begins = [at for at, _ in self._windows]
        self._forgetting = [fault for fault in injected if fault.forgets != "nothing"]
        self._overruling = [fault for fault in injected if fault.kind in OVERRULING]

    def undisturbed(self, at: float, until: float) -> float:
        """How many seconds between two moments nothing was done to anybody."""
        lost = sum(
            max(0.0, min(end, until) - max(begin, at)) for begin, end in self._between(at, until)
        )
        return max(0.0, until - at) - lost

    def is_disturbed(self, at: float) -> bool:
        """Whether something was done at this moment, or shortly before."""
        return any(begin <= at <= end for begin, end in self._between(at, at))

    def after(self, at: float, seconds: float) -> float:
        """The moment at which so many undisturbed seconds have passed."""
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
        """What servers may have forgotten that shows between two moments: ``tail``, ``all``."""
        return {
            fault.forgets
            for fault in self._forgetting
            if fault.at <= (at if until is None else until)
            and at <= fault.until + FORGETTING_IS_SEEN_S
        }

    def forgot_all_at(self, seen_at: float) -> float:
        """When the latest server that had forgotten all by then began anew, at the latest."""
        begun = (
            fault.until
            for fault in self._forgetting
            if fault.forgets == "all" and fault.at <= seen_at
        )
        return max(begun, default=float("inf"))

    def overruled(self, at: float) -> float:
        """From when on a wish made then may not hold any more, though its author wished no other.

        That moment is ``at`` itself for one that was made in the midst of it.
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
