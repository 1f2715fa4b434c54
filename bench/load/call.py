"""A call: what one session is asked and told, and what its caller hears of it."""

from typing import Final, Literal

import msgspec
import numpy as np

from bench.resp import Argument
from voicefleet.schemas.audio import FRAME_MS
from voicefleet.schemas.keys import Keys

GAP_MS: Final = 1.0
"""A frame that comes later than it should be played by less than this is no gap."""

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

    ``at_s`` is when it begins, after the callers did, or later where its caller is still busy.
    """

    session: str
    kind: Kind
    steps: tuple[Step, ...]
    at_s: float = 0.0


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one request. Times are monotonic ns; ``first_ns`` 0 is: no frame was heard.

    ``deadline_ns`` 0 is none. ``off_grid_ms`` is the p95 of the distances of its frames from their
    20 ms grid, ``gap_ms`` all the silence that a listener heard between its frames.
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
        """From the request to its first frame. NaN where there was none."""
        return (self.first_ns - self.asked_ns) / 1e6 if self.first_ns else float("nan")

    @property
    def after_deadline_ms(self) -> float:
        """From the deadline to the answer."""
        return (self.ended_ns - self.deadline_ns) / 1e6


def asking(
    keys: Keys, model: str, session: str, request: str, **fields: Argument
) -> tuple[Argument, ...]:
    """The command that adds a request."""
    flat = [part for pair in fields.items() for part in pair]
    queue = keys.requests(model)
    return ("XADD", queue, "*", "session", session, "request", request, *flat)


def gaps_ms(n: np.ndarray, at_ns: np.ndarray) -> np.ndarray:
    """The silences that a listener hears in one turn, each at the frame that ends it; 0 is none.

    Playing begins with the first frame; a frame that is late makes all after it later. ``n`` are
    the frames' numbers in order, ``at_ns`` when they came.
    """
    late = at_ns / 1e6 - n * FRAME_MS
    before = np.maximum.accumulate(late)
    silence = np.diff(before, prepend=before[:1])
    return np.where(silence >= GAP_MS, silence, 0.0)


def off_grid_ms(n: np.ndarray, at_ns: np.ndarray) -> np.ndarray:
    """Distances from the turn's 20 ms grid, which is fitted by the median; positive is late.

    Frames of the lead, which leave at once, are early by as much.
    """
    from_grid = at_ns / 1e6 - n * FRAME_MS
    return from_grid - np.median(from_grid)
