"""Checks of time: control values are followed, requests are served, turns continue.

Only time without faults counts (``QuietPeriods``).
"""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from verify.chaos.control_values import ControlHistory, ControlPeriod
from verify.chaos.evidence import Entry, Evidence, Request
from verify.chaos.quiet_periods import QuietPeriods
from verify.chaos.reconstruction import History, Turn
from verify.chaos.verdict import Violation

STOP_S: Final = 1.0
PAUSE_S: Final = 0.5
SERVED_S: Final = 15.0
"""A request that could be spoken, with slots free, waits less than this."""

SILENT_S: Final = 10.0
"""A turn that is not paused has its next entry sooner than this."""


def check_time(
    session: str, history: History, evidence: Evidence, quiet: QuietPeriods
) -> Iterator[Violation]:
    """Check every control value and every turn of a session."""
    requests = evidence.requests[session]
    controls = ControlHistory(evidence.controls[session], quiet)
    turns = sorted(history.turns, key=lambda turn: turn.entries[0].at)
    for control in controls:
        for turn in turns:
            if turn.entries[-1].at > control.at and turn.entries[0].at < control.binding_until:
                yield from _followed(turn, control, requests, quiet)
    for turn in turns:
        request = requests.get(turn.request)
        if request is not None:
            yield from _goes_on(turn, request, controls, quiet)
    yield from _served(turns, requests, controls, evidence, quiet)


def _broken(promise: str, turn: Turn, at: float, detail: str) -> Violation:
    return Violation(
        promise=promise,
        session=turn.session,
        request=turn.request,
        turn=turn.number,
        at=at,
        detail=detail,
    )


def _followed(
    turn: Turn, control: ControlPeriod, requests: dict[str, Request], quiet: QuietPeriods
) -> Iterator[Violation]:
    """After a pause there is no frame, after a stop nothing but the end."""
    request = requests.get(turn.request)
    stops = request is not None and control.surely_covers(request, requests)
    if not stops and not control.is_pause:
        return
    patience = STOP_S if stops else PAUSE_S
    for entry in _from(turn.entries, control.at):
        if entry.at >= control.binding_until:
            return
        if entry.kind != "frame" and not (stops and entry.kind == "start"):
            continue
        passed = quiet.undisturbed(control.at, entry.at)
        if passed > patience:
            said = f"{entry.id} came {passed:.2f} s after {control.value}"
            yield _broken("stop" if stops else "pause", turn, entry.at, said)
            return
    if stops and turn.entries[0].at < control.at:
        end = turn.end
        until = control.binding_until if end is None else min(end.at, control.binding_until)
        passed = quiet.undisturbed(control.at, until)
        if passed > STOP_S and until != float("inf"):
            yield _broken(
                "stop", turn, control.at, f"no end within {passed:.2f} s of {control.value}"
            )


def _goes_on(
    turn: Turn, request: Request, controls: ControlHistory, quiet: QuietPeriods
) -> Iterator[Violation]:
    """No turn hangs."""
    if request.sabotage:
        return
    for before, after in pairwise(turn.entries):
        if after.at - before.at > SILENT_S and not controls.paused(before.at, after.at):
            text = [piece.at for piece in request.wrote if piece.at < after.at]
            passed = quiet.undisturbed(max([before.at, *text]), after.at)
            if request.is_streamed and not any(piece.ended for piece in request.wrote):
                continue  # it waits for its client
            if passed > SILENT_S:
                said = f"{passed:.1f} s of silence before {after.id}"
                yield _broken("goes on", turn, after.at, said)


def _served(
    turns: list[Turn],
    requests: dict[str, Request],
    controls: ControlHistory,
    evidence: Evidence,
    quiet: QuietPeriods,
) -> Iterator[Violation]:
    """A request whose session is free, and for which there are slots, is not left waiting."""
    times = [capacity.at for capacity in evidence.capacity]
    free_at = 0.0
    for turn in turns:
        request = requests.get(turn.request)
        begins = turn.entries[0].at
        if request is not None and not request.sabotage:
            acknowledged = next((ask.at for ask in request.asks if ask.entry is not None), begins)
            could_be = max(free_at, acknowledged)
            passed = quiet.undisturbed(could_be, begins) if begins > could_be else 0.0
            if passed > SERVED_S and not controls.paused(could_be, begins):
                looks = evidence.capacity[bisect_left(times, could_be) : bisect_left(times, begins)]
                if all(look.slots_free > 0 for look in looks):
                    yield _broken("served", turn, begins, f"it waited for {passed:.1f} s")
        free_at = turn.entries[-1].at


def _from(entries: list[Entry], at: float) -> list[Entry]:
    return [entry for entry in entries if entry.at > at]
