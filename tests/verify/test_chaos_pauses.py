"""Pauses that a listener hears, and the time without faults."""

from pathlib import Path

import pytest

from tests.verify.good_run import KILL, OTHER, asked, changing, check_events, good, is_at
from verify.chaos.evidence import Evidence
from verify.chaos.journal import ControlSet, Event, Fault, Journal, ReaderOutage
from verify.chaos.pauses import kind_at, percentile
from verify.chaos.quiet_periods import GRACE_S, QuietPeriods
from verify.chaos.verdict import Verdict


def row(verdict: Verdict, fault: str):
    return next(row for row in verdict.rows if row.fault == fault)


def test_a_pause_is_put_down_to_its_fault(tmp_path: Path) -> None:
    verdict = check_events(good(), tmp_path)
    kill = row(verdict, KILL.kind)
    # Frame 5 came at 1019.98 and was over at 1020.00; frame 6 came at 1021.5.
    assert kill.pause_longest == pytest.approx(1.5)
    assert (kill.injected, kill.affected, kill.paused, kill.violations) == (1, 1, 1, 0)
    assert kill.recovery == pytest.approx(2.4)
    assert verdict.take_over_p95 == pytest.approx(1.5)
    assert row(verdict, "(undisturbed)").paused == 0
    assert row(verdict, "stumble").injected == 1


@pytest.mark.parametrize("fields", [{"lead_ms": "100"}, {"stream": "1"}])
def test_what_has_no_lead_or_no_text_yet_does_not_count(
    fields: dict[str, str], tmp_path: Path
) -> None:
    events = [
        asked(event.at, "t1", "plain-0", OTHER, fields=fields)
        if getattr(event, "session", "") == OTHER and hasattr(event, "utterance")
        else event
        for event in good()
    ]
    assert row(check_events(events, tmp_path), KILL.kind).paused == 0


def test_what_was_wished_is_no_pause(tmp_path: Path) -> None:
    wished = [
        ControlSet(at=1020.0, session=OTHER, value="pause"),
        ControlSet(at=1021.4, session=OTHER, value="resume"),
    ]
    assert row(check_events([*good(), *wished], tmp_path), KILL.kind).paused == 0


def test_what_came_early_bridges_what_comes_late(tmp_path: Path) -> None:
    events = good()
    for n in range(1, 6):  # 5 frames at once: the sixth is needed at 1020.0
        events = changing(is_at(1, n, OTHER), at=1019.9)(events)
    events = changing(is_at(1, 6, OTHER), at=1019.995)(events)
    for n in range(7, 11):
        events = changing(is_at(1, n, OTHER), at=1020.02)(events)
    assert row(check_events(events, tmp_path), KILL.kind).paused == 0


def test_who_drains_is_not_blamed_for_who_kills() -> None:
    faults = [fault(100.0, 112.0, "poison"), fault(105.0, 105.5, "worker_drain")]
    assert kind_at(107.0, faults) == "poison"
    assert kind_at(107.0, faults[1:]) == "worker_drain"
    assert kind_at(200.0, faults) == ""


def test_percentiles() -> None:
    assert percentile([], 0.95) == 0.0
    assert percentile([3.0], 0.5) == 3.0
    ordered = [float(k) for k in range(1, 101)]
    assert percentile(ordered, 0.5) == 50.0
    assert percentile(ordered, 0.95) == 95.0


def quiet(tmp_path: Path, *events: Event) -> QuietPeriods:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        for event in events:
            journal.write(event)
    return QuietPeriods(Evidence([path]))


def fault(at: float, until: float, kind: str = "worker_kill", **more: str) -> Fault:
    return Fault(at=at, until=until, kind=kind, target="", **more)  # type: ignore[arg-type]


def test_time_in_which_something_was_done_does_not_count(tmp_path: Path) -> None:
    times = quiet(
        tmp_path,
        fault(100.0, 110.0),
        fault(112.0, 113.0),
        fault(200.0, 201.0, "late_reader"),
        fault(300.0, 301.0, skipped="no such thing here"),
        ReaderOutage(at=400.0, until=401.0, reader="recorder"),
    )
    over = 113.0 + GRACE_S
    assert times.undisturbed(0.0, 100.0) == 100.0
    assert times.undisturbed(99.0, 105.0) == pytest.approx(1.0)
    assert times.undisturbed(105.0, 106.0) == 0.0
    assert times.undisturbed(99.0, over + 2.0) == pytest.approx(3.0)
    assert times.undisturbed(190.0, 310.0) == 120.0
    assert times.undisturbed(399.0, 402.0) == pytest.approx(1.7)
    assert times.after(50.0, 1.0) == 51.0
    assert times.after(99.5, 1.0) == pytest.approx(over + 0.5)
    assert times.after(105.0, 1.0) == pytest.approx(over + 1.0)
    assert times.is_disturbed(117.0)
    assert not times.is_disturbed(over + 0.1)


def test_what_servers_forget_is_known_for_a_while(tmp_path: Path) -> None:
    times = quiet(
        tmp_path,
        fault(100.0, 101.0, "flushall", forgets="all"),
        fault(200.0, 201.0, "lost_tail", forgets="tail"),
        fault(300.0, 305.0, "control_flood"),
    )
    assert times.forgot(99.0) == set()
    assert times.forgot(103.0) == {"all"}
    assert times.forgot(99.0, 250.0) == {"all", "tail"}
    assert times.forgot(150.0) == set()
    assert times.overruled(99.0) == 100.0
    assert times.overruled(200.5) == 200.5
    assert times.overruled(250.0) == 300.0
    assert times.overruled(306.0) == float("inf")
