"""A call: the commands of one session, and the answers to its requests."""

from typing import Final, Literal

import msgspec
import numpy as np

from bench.resp import Argument
from voicefleet.schemas.audio import FRAME_MS
from voicefleet.schemas.keys import Keys

GAP_MS: Final = 1.0
"""A frame that is late by less than this makes no gap."""

Kind = Literal["plain", "streamed", "stopped", "interrupted", "paused", "expiring"]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One command of a caller, ``at_s`` after the call began.

    ``request`` is set where it adds one: the call goes on until it is answered, with a reason of
    ``expected`` if all is well. With ``deadline_s`` the field is added, counted from the sending.
    """

    at_s: float
    command: tuple[Argument, ...]
    request: str | None = None
    expected: tuple[str, ...] = ("completed",)
    deadline_s: float | None = None


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One session from its first request to its last answer.

    It starts ``at_s`` after the callers did, or later if its caller is still busy.
    """

    session: str
    kind: Kind
    steps: tuple[Step, ...]
    at_s: float = 0.0


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """How one request was answered. Times are monotonic ns; ``first_ns`` is 0 without a frame.

    ``deadline_ns`` is 0 without a deadline. ``off_grid_ms`` is the p95 of its frames' distances
    from the 20 ms grid, ``gap_ms`` the sum of the gaps in playback.
    """

    session: str
    request: str
    kind: Kind
    asked_ns: int
    first_ns: int
    ended_ns: int
    deadline_ns: int
    reason: str
    is_expected: bool
    frames: int
    off_grid_ms: float
    gap_ms: float

    @property
    def wait_ms(self) -> float:
        """From the request to its first frame, in ms; NaN without a frame."""
        return (self.first_ns - self.asked_ns) / 1e6 if self.first_ns else float("nan")

    @property
    def after_deadline_ms(self) -> float:
        """From the deadline to the answer, in ms."""
        return (self.ended_ns - self.deadline_ns) / 1e6


def asking(
    keys: Keys, model: str, session: str, request: str, **fields: Argument
) -> tuple[Argument, ...]:
    """The command that adds a request."""
    flat = [part for pair in fields.items() for part in pair]
    queue = keys.requests(model)
    return ("XADD", queue, "*", "session", session, "request", request, *flat)


def gaps_ms(n: np.ndarray, at_ns: np.ndarray) -> np.ndarray:
    """The gap in playback before each frame of one turn, in ms; 0 without a gap.

    Playback starts with the first frame; a late frame delays all after it. ``n`` has the frames'
    numbers in order, ``at_ns`` their arrivals.
    """
    late = at_ns / 1e6 - n * FRAME_MS
    before = np.maximum.accumulate(late)
    silence = np.diff(before, prepend=before[:1])
    return np.where(silence >= GAP_MS, silence, 0.0)


def off_grid_ms(n: np.ndarray, at_ns: np.ndarray) -> np.ndarray:
    """Distances from the turn's 20 ms grid in ms, fitted by the median; positive is late.

    Frames of the lead are published at once, and so are early.
    """
    from_grid = at_ns / 1e6 - n * FRAME_MS
    return from_grid - np.median(from_grid)
