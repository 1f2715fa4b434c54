"""Checks of the whole fleet: capacity recovers, no keys are left, dead letters are complete."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from verify.chaos.evidence import Evidence
from verify.chaos.journal import Capacity, Fault, FinalState
from verify.chaos.quiet_periods import QuietPeriods
from verify.chaos.reconstruction import History, Turn
from verify.chaos.verdict import Violation

RECOVERY_S: Final = 5.0
REFERENCES: Final = "reference:"
"""Prefix of the sessions in which the reference recordings were made, before the faults."""

_FORGOTTEN_S: Final = 15.0


def check_final_state(
    evidence: Evidence, histories: Mapping[str, History], quiet: QuietPeriods
) -> Iterator[Violation]:
    """Check what is left on the servers after the run."""
    left = evidence.final_state
    if left is None:
        return
    yield from (_broken("ttl", left, f"{key} stays for ever") for key in left.without_ttl)
    for model, count in left.pending.items():
        if count:
            yield _broken("pending", left, f"{count} requests of {model} are still pending")
    for model, count in left.queued.items():
        if count:
            yield _broken("queued", left, f"{count} requests of {model} are still queued")
    for worker, (free, total) in left.slots.items():
        if free != total:
            yield _broken("slots", left, f"{worker} has {free} of {total} slots free")
    for session in left.live_sessions:
        yield _broken("idle", left, f"{session} is not idle", session)
    yield from _letters(left, evidence, histories, quiet)


def _letters(
    left: FinalState, evidence: Evidence, histories: Mapping[str, History], quiet: QuietPeriods
) -> Iterator[Violation]:
    """A dead letter for each turn that was rejected or failed, and for no other."""
    forgot_all = [
        fault.until for fault in evidence.faults if fault.forgets == "all" and not fault.skipped
    ]
    since = max(forgot_all, default=0.0)
    wanted: Counter[tuple[str, str, str]] = Counter()
    allowed: Counter[tuple[str, str, str]] = Counter()
    for session, history in histories.items():
        for turn in _with_dead_letter([*history.turns, *history.lost_turns]):
            assert turn.end is not None
            letter = (session, turn.request, turn.reason)
            doubtful = bool(quiet.forgot(turn.end.at, turn.end.at + _FORGOTTEN_S))
            allowed[letter] += 2 if doubtful else 1
            if turn.end.at > since and not doubtful:
                wanted[letter] += 1
    found: Counter[tuple[str, str, str]] = Counter()
    for letter in left.dead_letters:
        if not letter.get("session", "").startswith(REFERENCES):
            found[tuple(letter.get(name, "") for name in ("session", "request", "reason"))] += 1  # type: ignore[index]
    for letter, count in (wanted - found).items():
        said = f"{count} dead letters of a {letter[2]} turn are missing"
        yield _broken("dead letters", left, said, *letter[:2])
    for letter, count in (found - allowed).items():
        said = f"{count} dead letters ({letter[2]}) too many"
        yield _broken("dead letters", left, said, *letter[:2])


def _with_dead_letter(turns: Iterable[Turn]) -> Iterator[Turn]:
    """Turns that a worker ended for good, each of which has a dead letter."""
    for turn in turns:
        lost = turn.end is not None and "lease_lost" in turn.end.fields.get("error", "")
        if turn.reason in ("rejected", "failed") and not lost:
            yield turn


def recoveries(evidence: Evidence) -> dict[Fault, float | None]:
    """Of each fault: seconds from its end to full capacity; ``None`` if that was never seen.

    Full is what the fleet had before the first fault. A fault that is followed by another one
    before the fleet was full is left out.
    """
    faults = [fault for fault in evidence.faults if not fault.skipped]
    full = _full(evidence.capacity, faults)
    if full is None:
        return {}
    found: dict[Fault, float | None] = {}
    for fault in faults:
        next_at = min((one.at for one in faults if one.at > fault.at), default=float("inf"))
        looks = [look for look in evidence.capacity if fault.until <= look.at < next_at]
        times = (look.at for look in looks if _is_full(look, full))
        at = next(times, None)
        if at is not None:
            found[fault] = at - fault.until
        elif looks and looks[-1].at - fault.until > RECOVERY_S:
            found[fault] = None
    return found


def check_capacity(evidence: Evidence, sabotage: Iterable[Fault]) -> Iterator[Violation]:
    """Check that capacity is back soon after each fault, unless a saboteur acts meanwhile."""
    sabotage = list(sabotage)
    for fault, seconds in recoveries(evidence).items():
        until = fault.until + RECOVERY_S
        busy = any(one.at < until and fault.at < one.until + RECOVERY_S for one in sabotage)
        if busy or (seconds is not None and seconds <= RECOVERY_S):
            continue
        said = "never" if seconds is None else f"{seconds:.1f} s after it"
        yield Violation(
            promise="capacity",
            at=fault.until,
            detail=f"full capacity {said}: {fault.kind} {fault.target}".rstrip(),
        )


def _full(capacity: list[Capacity], faults: list[Fault]) -> Capacity | None:
    first = faults[0].at if faults else float("inf")
    before = [look for look in capacity if look.at < first]
    return max(before, key=lambda look: (look.ready, look.slots_total), default=None)


def _is_full(look: Capacity, full: Capacity) -> bool:
    return look.ready >= full.ready and look.slots_total >= full.slots_total


def check_client_failures(evidence: Evidence, quiet: QuietPeriods) -> Iterator[Violation]:
    """Check that the Python client raised only what a fault of a server explains."""
    for failure in evidence.client_failures:
        kind = failure.error.partition(":")[0]
        excused = kind in ("ServerUnreachable", "ServerRefused") and quiet.is_disturbed(failure.at)
        if not excused and not quiet.forgot(failure.at):
            yield Violation(
                promise="client",
                session=failure.session,
                request=failure.request,
                at=failure.at,
                detail=failure.error,
            )


def _broken(
    promise: str, left: FinalState, detail: str, session: str = "", request: str = ""
) -> Violation:
    return Violation(promise=promise, session=session, request=request, at=left.at, detail=detail)
