"""Checks the journals of a run against the protocol.

It shares no code with the fleet: ids, fields and rules come from the protocol's text.
``verdict.PROMISES`` lists what is checked; ``reconstruction`` says what is allowed after a server
lost data.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from verify.chaos.control_values import ControlHistory
from verify.chaos.evidence import SABOTAGE, Evidence
from verify.chaos.invariants_of_fleet import (
    check_capacity,
    check_client_failures,
    check_final_state,
    recoveries,
)
from verify.chaos.invariants_of_readers import check_readers
from verify.chaos.invariants_of_requests import check_requests
from verify.chaos.invariants_of_time import check_time
from verify.chaos.invariants_of_turns import check_turns
from verify.chaos.journal import Fault
from verify.chaos.pauses import (
    TAKE_OVER,
    Pause,
    attributed,
    kind_at,
    longest_of_turns,
    pauses_of,
    percentile,
)
from verify.chaos.quiet_periods import KILLING, QuietPeriods
from verify.chaos.reconstruction import History, Turn, history
from verify.chaos.verdict import UNDISTURBED, Row, Verdict, Violation


def check(paths: Iterable[Path]) -> Verdict:
    """Check a run by its journals, in any number of files."""
    evidence = Evidence(paths)
    sabotage = _sabotage(evidence)
    quiet = QuietPeriods(evidence, sabotage)
    violations: list[Violation] = []
    histories: dict[str, History] = {}
    for session in evidence.sessions:
        found = histories[session] = history(session, evidence.recorded(session), quiet)
        violations += chain(
            found.violations,
            check_turns(session, found, evidence),
            check_requests(session, found, evidence, quiet),
            check_time(session, found, evidence, quiet),
            check_readers(session, evidence, quiet),
        )
    violations += check_client_failures(evidence, quiet)
    violations += check_capacity(evidence, sabotage)
    violations += check_final_state(evidence, histories, quiet)
    violations.sort(key=lambda violation: violation.at)
    return _verdict(evidence, histories, quiet, sabotage, violations)


def _sabotage(evidence: Evidence) -> list[Fault]:
    """Sabotage requests as faults, each from its request to its answer."""
    found: list[Fault] = []
    for session, requests in evidence.requests.items():
        for request in requests.values():
            if request.sabotage:
                ends = [
                    reading.at
                    for reading in evidence.recorded(session)
                    if getattr(reading, "kind", "") == "end"
                    and reading.fields.get("request") == request.name  # type: ignore[union-attr]
                ]
                until = max(ends, default=request.at)
                target = f"{session} {request.name}"
                found.append(
                    Fault(at=request.at, until=until, kind=request.sabotage, target=target)
                )
    return sorted(found, key=lambda fault: fault.at)


def _verdict(
    evidence: Evidence,
    histories: dict[str, History],
    quiet: QuietPeriods,
    sabotage: Sequence[Fault],
    violations: list[Violation],
) -> Verdict:
    injected = [fault for fault in evidence.faults if not fault.skipped]
    causes = [*injected, *(fault for fault in sabotage if fault.kind in KILLING)]
    turns = [turn for one in histories.values() for turn in one.turns]
    listened = [turn for one in histories.values() for turn in one.listened]
    pauses: list[Pause] = []
    for session, one in histories.items():
        controls = ControlHistory(evidence.controls[session], quiet)
        for turn in one.listened:
            request = evidence.requests[session].get(turn.request)
            if request is not None:
                pauses += pauses_of(turn, request, controls)
    by_kind = attributed(pauses, causes)
    blamed = Counter(kind_at(violation.at, causes) for violation in violations)
    recovered = recoveries(evidence)
    kinds = sorted({fault.kind for fault in evidence.faults})
    kinds += [kind for kind in SABOTAGE if any(fault.kind == kind for fault in sabotage)]
    rows = [
        _row(
            kind,
            [fault for fault in (*evidence.faults, *sabotage) if fault.kind == kind],
            listened,
            longest_of_turns(by_kind.get(kind, [])),
            [s for fault, s in recovered.items() if fault.kind == kind and s is not None],
            blamed[kind],
        )
        for kind in kinds
    ]
    undisturbed = _row(
        UNDISTURBED, [], listened, longest_of_turns(by_kind.get("", [])), [], blamed[""]
    )
    taken_over = [s for kind in TAKE_OVER for s in longest_of_turns(by_kind.get(kind, []))]
    times = sorted(s for s in recovered.values() if s is not None)
    return Verdict(
        requests=sum(len(requests) for requests in evidence.requests.values()),
        ends=dict(Counter(turn.reason or "none" for turn in turns).most_common()),
        frames=sum(len(turn.frames) for turn in turns),
        rows=(*rows, undisturbed),
        violations=tuple(violations),
        notes=tuple(_notes(evidence, histories)),
        take_over_p95=percentile(sorted(taken_over), 0.95),
        recovery_p95=percentile(times, 0.95),
        recovery_longest=max(times, default=0.0),
    )


def _row(
    kind: str,
    faults: Sequence[Fault],
    turns: Sequence[Turn],
    pauses: Sequence[float],
    recovered: Sequence[float],
    violations: int,
) -> Row:
    injected = [fault for fault in faults if not fault.skipped]
    affected = sum(
        any(
            turn.entries[0].at <= fault.until and fault.at <= turn.entries[-1].at
            for fault in injected
        )
        for turn in turns
    )
    return Row(
        fault=kind,
        injected=len(injected),
        skipped=len(faults) - len(injected),
        affected=affected,
        paused=len(pauses),
        pause_p50=percentile(pauses, 0.5),
        pause_p95=percentile(pauses, 0.95),
        pause_longest=max(pauses, default=0.0),
        recovery=max(recovered, default=None),
        violations=violations,
    )


def _notes(evidence: Evidence, histories: dict[str, History]) -> Iterable[str]:
    generations = sum(len(one.generations) - 1 for one in histories.values())
    reused = sum(one.reused for one in histories.values())
    moved = sum(one.moved for one in histories.values())
    again = sum(
        ask.again
        for requests in evidence.requests.values()
        for r in requests.values()
        for ask in r.asks
    )
    outages = sum(one.until - one.at for one in evidence.outages)
    yield f"{again} requests were added again"
    if generations:
        yield f"sessions lost all their data {generations} times"
    if reused or moved:
        yield f"after a forgotten tail: {reused} numbers used again, {moved} ends moved"
    if outages:
        yield f"the recorder could not read for {outages:.1f} s"
    if evidence.final_state is None:
        yield "the server was not inspected afterwards"
