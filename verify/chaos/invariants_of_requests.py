"""Checks of requests: each is answered once, in order, with the right reason."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from verify.chaos.control_values import ControlHistory
from verify.chaos.evidence import NEVER_SPOKEN, Evidence, Request
from verify.chaos.quiet_periods import QuietPeriods
from verify.chaos.reconstruction import Generation, History, Turn
from verify.chaos.verdict import Violation

DEADLINE_LATE_MS: Final = 500
"""A turn may start so long after its deadline, which is checked shortly before the start."""

DEADLINE_EARLY_MS: Final = 50
FORGETTING_S: Final = 30.0
TEXT_TIMEOUT_S: Final = 25.0
"""A gap in streamed text shorter than this is no timeout (the fleet waits for 30 s)."""

BOUNDARY_S: Final = 2.0


def check_requests(
    session: str, history: History, evidence: Evidence, quiet: QuietPeriods
) -> Iterator[Violation]:
    """Check every request of a session."""
    requests = evidence.requests[session]
    controls = ControlHistory(evidence.controls[session], quiet)
    for generation in history.generations:
        yield from _once(generation, requests)
        yield from _order(generation, requests)
        for turn in generation.turns:
            request = requests.get(turn.request)
            if request is not None:
                yield from _deadline(turn, request, quiet)
                if turn.end is not None:
                    problem = _reason(turn, request, requests, controls, quiet)
                    if problem:
                        yield _broken("reason", turn, f"{turn.reason}: {problem}")
    yield from _answered(history, requests, evidence.answered[session])


def _broken(promise: str, turn: Turn, detail: str) -> Violation:
    entry = turn.end or turn.entries[0]
    return Violation(
        promise=promise,
        session=turn.session,
        request=turn.request,
        turn=turn.number,
        at=entry.at,
        detail=detail,
    )


def _answered(
    history: History, requests: dict[str, Request], heard: set[str]
) -> Iterator[Violation]:
    """Each request has an end in some generation. One that was read and then lost counts."""
    ended = heard | {turn.request for turn in history.turns if turn.end is not None}
    ended |= {turn.request for turn in history.lost_turns if turn.end is not None}
    for name, request in requests.items():
        if name not in ended and request.acknowledged:
            yield Violation(
                promise="answered",
                session=request.session,
                request=name,
                at=request.at,
                detail=f"no end; asked {len(request.asks)} times",
            )


def _once(generation: Generation, requests: dict[str, Request]) -> Iterator[Violation]:
    """No request has two turns in one generation."""
    del requests
    turns = Counter(turn.request for turn in generation.turns if turn.request)
    for turn in generation.turns:
        if turns[turn.request] > 1:
            twice = [str(one.number) for one in generation.turns if one.request == turn.request]
            turns[turn.request] = 0
            yield _broken("once", turn, f"answered by turns {', '.join(twice)}")


def _order(generation: Generation, requests: dict[str, Request]) -> Iterator[Violation]:
    """Turns come in the order in which their requests were added."""
    latest: Request | None = None
    for turn in generation.turns:
        request = requests.get(turn.request)
        if request is None or (generation.number and request.at < generation.began_at + BOUNDARY_S):
            continue
        if latest is not None and request.surely_before(latest):
            yield _broken("order", turn, f"it was added before {latest.name}")
        if latest is None or request.first > latest.first:
            latest = request


def _deadline(turn: Turn, request: Request, quiet: QuietPeriods) -> Iterator[Violation]:
    """A turn that did not start by its deadline is not spoken."""
    deadline, start = request.deadline_ms, turn.start
    if deadline is None or start is None:
        return
    late_ms = start.t - deadline
    # A fault may have delayed the fleet between its check of the clock and the start.
    held_up = quiet.is_disturbed(start.at)
    if late_ms > DEADLINE_LATE_MS and not held_up:
        yield _broken("deadline", turn, f"it started {late_ms} ms after its deadline")


def _reason(
    turn: Turn,
    request: Request,
    requests: dict[str, Request],
    controls: ControlHistory,
    quiet: QuietPeriods,
) -> str:
    """Why this turn must not have ended so; empty where it may."""
    assert turn.end is not None
    at, fields = turn.end.at, turn.end.fields
    spoken = turn.start is not None
    match turn.reason:
        case "completed":
            if request.asked.invalid:
                return "the request is invalid"
            if request.sabotage in NEVER_SPOKEN:
                return "it fails on every attempt"
            return "" if spoken else "without a start"
        case "stopped":
            return "" if controls.stopped(request, requests, at) else "no control value stopped it"
        case "interrupted":
            later = (one for one in requests.values() if one.field.get("interrupt") == "1")
            if any(
                one.at <= at and not one.surely_before(request)
                for one in later
                if one is not request
            ):
                return ""
            return "no request interrupted it"
        case "expired":
            if request.deadline_ms is None:
                return "it has no deadline"
            if spoken:
                return "it was started"
            early = request.deadline_ms - turn.end.t
            return f"{early} ms early" if early > DEADLINE_EARLY_MS else ""
        case "rejected":
            if not request.asked.invalid:
                return f"the request is valid ({fields.get('error')})"
            return "it was started" if spoken else ""
        case "failed":
            return _failed(turn, request, quiet)
        case other:
            return f"no reason of the protocol: {other!r}"


def _failed(turn: Turn, request: Request, quiet: QuietPeriods) -> str:
    assert turn.end is not None
    error = turn.end.fields.get("error", "")
    if not error:
        return "it does not say why"
    if request.sabotage:
        return ""
    if "text_timeout" in error and request.is_streamed:
        last = max((piece.at for piece in request.wrote), default=request.at)
        complete = any(piece.ended for piece in request.wrote)
        forgot = quiet.forgot(last, turn.end.at)
        if (not complete and turn.end.at - last > TEXT_TIMEOUT_S) or forgot:
            return ""
    if "lease_lost" in error and quiet.forgot(turn.end.at - FORGETTING_S, turn.end.at):
        return ""
    return error
