"""What a client wished of its session, and from when till when it held."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from verify.chaos.evidence import Request
from verify.chaos.journal import Wished
from verify.chaos.quiet_periods import Calm

LINGER_S: Final = 0.5
"""A wish that was taken back may still act for so long."""


class ControlValue(msgspec.Struct, frozen=True):
    """A value of the control key.

    ``until``: the next wish of the same client. ``binding_until``: somebody else, or a server that
    forgot, may have set it otherwise from then on.
    """

    value: str
    at: float
    until: float
    binding_until: float

    @property
    def is_pause(self) -> bool:
        """Whether no frame is to be published."""
        return self.value.lower() == "pause"

    def covers(self, request: Request, requests: Mapping[str, Request]) -> bool:
        """Whether it stops this request."""
        verb, colon, named = self.value.partition(":")
        if verb.lower() != "stop":
            return False
        return not colon or (named in requests and not request.surely_after(requests[named]))

    def surely_covers(self, request: Request, requests: Mapping[str, Request]) -> bool:
        """The same, where places are not in doubt."""
        verb, colon, named = self.value.partition(":")
        if verb.lower() != "stop":
            return False
        if not colon or named == request.name:
            return True
        return named in requests and request.surely_before(requests[named])


class Wishes:
    """Of one session, in their order."""

    def __init__(self, wished: Sequence[Wished], calm: Calm) -> None:
        self._calm = calm
        self._wishes: list[ControlValue] = []
        for index, one in enumerate(wished):
            until = wished[index + 1].at if index + 1 < len(wished) else float("inf")
            binding = min(until, calm.overruled(one.at))
            self._wishes.append(ControlValue(one.value, one.at, until, binding))

    def __iter__(self) -> Iterator[ControlValue]:
        return iter(self._wishes)

    def stopped(self, request: Request, requests: Mapping[str, Request], end_at: float) -> bool:
        """Whether a stop that covers the request was wished while it lived."""
        return any(
            wish.covers(request, requests)
            and wish.at <= end_at
            and self._calm.after(wish.until, LINGER_S) >= request.at
            for wish in self._wishes
        )

    def paused(self, at: float, until: float) -> bool:
        """Whether a pause may have held at any time between two moments."""
        return any(
            wish.is_pause and wish.at <= until and self._calm.after(wish.until, LINGER_S) >= at
            for wish in self._wishes
        )
