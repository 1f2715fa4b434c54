"""The control values that a client set in its session, and the period in which each held."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from verify.chaos.evidence import Request
from verify.chaos.journal import ControlSet
from verify.chaos.quiet_periods import QuietPeriods

LINGER_S: Final = 0.5
"""How long a control value may still act after it was replaced, in seconds."""


class ControlPeriod(msgspec.Struct, frozen=True):
    """A value of the control key and when it held (seconds on the monotonic clock).

    It was set at ``at`` and replaced by the same client at ``until``. From ``binding_until`` on,
    a fault may have changed it.
    """

    value: str
    at: float
    until: float
    binding_until: float

    @property
    def is_pause(self) -> bool:
        """Whether it forbids publishing frames."""
        return self.value.lower() == "pause"

    def covers(self, request: Request, requests: Mapping[str, Request]) -> bool:
        """Whether it may stop this request."""
        verb, colon, named = self.value.partition(":")
        if verb.lower() != "stop":
            return False
        return not colon or (named in requests and not request.surely_after(requests[named]))

    def surely_covers(self, request: Request, requests: Mapping[str, Request]) -> bool:
        """Whether it stops this request, wherever lost replies put it in the order."""
        verb, colon, named = self.value.partition(":")
        if verb.lower() != "stop":
            return False
        if not colon or named == request.name:
            return True
        return named in requests and request.surely_before(requests[named])


class ControlHistory:
    """The control values of one session, in order."""

    def __init__(self, events: Sequence[ControlSet], quiet: QuietPeriods) -> None:
        self._quiet = quiet
        self._controls: list[ControlPeriod] = []
        for index, one in enumerate(events):
            until = events[index + 1].at if index + 1 < len(events) else float("inf")
            binding = min(until, quiet.overruled(one.at))
            self._controls.append(ControlPeriod(one.value, one.at, until, binding))

    def __iter__(self) -> Iterator[ControlPeriod]:
        return iter(self._controls)

    def stopped(self, request: Request, requests: Mapping[str, Request], end_at: float) -> bool:
        """Whether a stop that covers the request held between its add and ``end_at``."""
        return any(
            control.covers(request, requests)
            and control.at <= end_at
            and self._quiet.after(control.until, LINGER_S) >= request.at
            for control in self._controls
        )

    def paused(self, at: float, until: float) -> bool:
        """Whether a pause may have held at any time between two moments."""
        return any(
            control.is_pause
            and control.at <= until
            and self._quiet.after(control.until, LINGER_S) >= at
            for control in self._controls
        )
