"""Pauses that a listener hears, and the faults that caused them.

A listener plays frame n when it has arrived, and 20 ms after frame n - 1 at the earliest. Waiting
for longer is a pause. Turns that the client paused or stopped do not count, nor turns whose lead is
too small to bridge anything.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from verify.chaos.control_values import ControlHistory
from verify.chaos.evidence import Entry, Request
from verify.chaos.journal import Fault
from verify.chaos.reconstruction import Turn

FRAME_S: Final = 0.02
LEAST_S: Final = 0.02
"""Shorter waits are no pauses."""

LEAST_LEAD_MS: Final = 200
DEFAULT_LEAD_MS: Final = 400
ECHO_S: Final = 8.0
"""A fault causes pauses until so many seconds after its end."""

TAKE_OVER: Final = (
    "worker_kill",
    "worker_kill_two",
    "worker_stop",
    "net_half_open",
    "net_partition",
)
"""Faults after which another worker takes the turn over."""


GENTLE: Final = (
    *("worker_drain", "drain_all_but_one", "clock_jump", "control_flood", "script_flush"),
    *("slow_reader", "dead_reader", "late_reader"),
)
"""Faults that should cause no pause: blamed only where there is no other."""


class Pause(msgspec.Struct, frozen=True):
    """From ``at`` on nothing was heard for ``seconds``."""

    session: str
    turn: int
    at: float
    seconds: float


def pauses_of(turn: Turn, request: Request, controls: ControlHistory) -> Iterator[Pause]:
    """The pauses that a listener of this turn hears."""
    frames = turn.frames
    if not frames or not _counts(request):
        return
    if controls.paused(turn.entries[0].at, turn.entries[-1].at):
        return
    yield from _heard(turn, frames)


def _counts(request: Request) -> bool:
    lead_ms = int(request.field.get("lead_ms", str(DEFAULT_LEAD_MS)))
    bridged = lead_ms == 0 or lead_ms >= LEAST_LEAD_MS
    return bridged and not request.is_streamed and not request.sabotage


def _heard(turn: Turn, frames: Sequence[Entry]) -> Iterator[Pause]:
    over = frames[0].at + FRAME_S
    """When the previous frame has been played."""
    for frame in frames[1:]:
        if frame.at - over >= LEAST_S:
            yield Pause(turn.session, turn.number, over, frame.at - over)
        over = max(frame.at, over) + FRAME_S


def attributed(pauses: Sequence[Pause], faults: Sequence[Fault]) -> Mapping[str, list[Pause]]:
    """Pauses by the kind of the latest fault that can have caused them; "" where none can."""
    found: dict[str, list[Pause]] = {}
    for pause in pauses:
        found.setdefault(kind_at(pause.at, faults, pause.seconds), []).append(pause)
    return found


def kind_at(at: float, faults: Sequence[Fault], seconds: float = 0.0) -> str:
    """The kind of the latest fault that can have caused a problem at a moment; "" for none."""
    near = [fault for fault in faults if fault.at <= at + seconds and at <= fault.until + ECHO_S]
    near = [fault for fault in near if fault.kind not in GENTLE] or near
    return max(near, key=lambda fault: fault.at).kind if near else ""


def longest_of_turns(pauses: Sequence[Pause]) -> list[float]:
    """The longest pause of each turn that had one, in seconds, in order of length."""
    longest: dict[tuple[str, int], float] = {}
    for pause in pauses:
        turn = (pause.session, pause.turn)
        longest[turn] = max(pause.seconds, longest.get(turn, 0.0))
    return sorted(longest.values())


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that a ``share`` of them do not exceed; 0 without values."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]
