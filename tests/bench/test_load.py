"""The load benches: what they count as heard, and that small sizes of them say sensible things."""

from functools import partial
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("psutil", reason="the benches are not installed (group bench)")


from bench.load import overload, scale, sizing, soak
from bench.load.call import Call, Step, asking, gaps_ms, off_grid_ms
from bench.load.callers import Callers
from bench.load.flood import MODEST, FloodPlan, scripts
from bench.load.mix import mix
from bench.load.sizing import Costs
from bench.load.soaking import SoakPlan
from bench.report import Report
from voicefleet.embedded_server import EmbeddedServer
from voicefleet.schemas.keys import Keys

COSTS = Costs(
    worker_share=0.002,
    server_share=0.0015,
    memory_mb=6.0,
    mbit_in=1.0,
    mbit_out=0.9,
    turn_us=100.0,
    beat_us=50.0,
    beat_us_per_worker=0.5,
)


def at_ms(*moments: float) -> np.ndarray:
    return np.array([moment * 1e6 for moment in moments])


def value(report: Report, name: str) -> float:
    (found,) = [one.value for one in report.figures if one.name == name]
    return found


# What is heard.


def test_frames_ahead_of_their_time_make_no_gap() -> None:
    assert not gaps_ms(np.arange(1, 5), at_ms(0, 0, 0, 60.9)).any()


def test_a_late_frame_is_one_gap_and_makes_those_after_it_later() -> None:
    n = np.arange(1, 6)
    assert gaps_ms(n, at_ms(0, 20, 90, 110, 130)) == pytest.approx([0, 0, 50, 0, 0])
    assert gaps_ms(n, at_ms(0, 50, 60, 110, 130)) == pytest.approx([0, 30, 0, 20, 0])


def test_the_grid_is_that_of_most_frames() -> None:
    n = np.arange(1, 6)
    assert off_grid_ms(n, at_ms(100, 120, 147, 160, 179)) == pytest.approx([0, 0, 7, 0, -1])


# What a fleet needs.


def test_sizes_follow_from_what_fills_first() -> None:
    least = sizing.need(1_000, COSTS)
    assert (least.shard_binds, least.shards) == ("processor", 3)  # 400 sessions a shard
    assert least.shard_sessions * COSTS.server_share <= sizing.HEADROOM
    assert least.worker_cores == 4
    assert least.gpu_workers == 27
    heavy = sizing.need(1_000, msgspec.structs.replace(COSTS, memory_mb=60.0))
    assert heavy.shard_binds == "memory"
    assert heavy.shard_memory_gb <= sizing.HEADROOM * sizing.SHARD_MEMORY_GB
    wide = sizing.need(1_000, msgspec.structs.replace(COSTS, mbit_out=100.0))
    assert wide.shard_binds == "network"
    assert wide.shard_gbit_out <= sizing.HEADROOM * sizing.LINK_GBIT


def test_heartbeats_grow_with_the_square_of_the_fleet() -> None:
    some, more = (sizing.need(sessions, COSTS) for sessions in (10_000, 100_000))
    assert more.shards == pytest.approx(10 * some.shards, rel=0.05)
    assert more.registry_share > 20 * some.registry_share


# What is asked.


def test_a_flood_is_the_same_each_time_and_has_its_tenants() -> None:
    plan = FloodPlan(
        workers=2,
        slots=2,
        live=2,
        times=10,
        per_s=10.0,
        modest_per_s=2.0,
        before_s=1.0,
        flood_s=4.0,
        after_s=1.0,
    )
    calls = [call for script in scripts(plan) for call in script()]
    assert calls == [call for script in scripts(plan) for call in script()]
    at_once = [call for call in calls if call.at_s == 1.0 and call.session[:5] != "probe"]
    assert len(at_once) == 40
    modest = [call for call in calls if call.session.startswith(f"{MODEST}:")]
    assert len(modest) == 8
    assert all(call.steps[0].deadline_s is None for call in modest)
    deadlines = [call.steps[0].deadline_s for call in calls if call.kind == "expiring"]
    assert len(deadlines) > 40
    assert all(deadline is not None and 1 <= deadline <= 3 for deadline in deadlines)


def test_a_mix_has_every_kind_and_never_the_same_session() -> None:
    calls = list(islice(mix(1, 0), 200))
    assert {call.kind for call in calls} == {
        "plain",
        "streamed",
        "stopped",
        "interrupted",
        "paused",
    }
    assert len({call.session for call in calls}) == 200
    assert calls == list(islice(mix(1, 0), 200))
    assert calls != list(islice(mix(2, 0), 200))


def test_a_caller_whom_nobody_answers_notes_that_and_goes_on() -> None:
    with (
        EmbeddedServer.start_blocking() as server,
        Callers(server.port, [partial(_unanswered, 3)], patience_s=0.2) as callers,
    ):
        answers = callers.rest()
    assert [one.session for one in answers] == ["s0", "s1", "s2"]
    assert {(one.reason, one.is_expected, one.first_ns) for one in answers} == {("none", False, 0)}


def _unanswered(count: int) -> list[Call]:
    return [
        Call(
            session=f"s{i}",
            kind="plain",
            steps=(
                Step(
                    at_s=0.0,
                    command=asking(Keys(), "nobody", f"s{i}", "r1", text="Hi."),
                    request="r1",
                ),
            ),
        )
        for i in range(count)
    ]


# The benches themselves, in small. Times are the machine's of the moment: none is judged here.


@pytest.mark.long
@pytest.mark.alone
@pytest.mark.timeout(300)
def test_scale_measures_every_point_and_computes_sizes() -> None:
    plan = scale.ScalePlan(one=(2,), several=(4,), workers=2, seconds=2.0)
    report = scale.run(plan)
    points = report.series["points"]
    assert [(point["workers"], point["sessions"]) for point in points] == [(1, 2), (2, 4)]
    for point in points:
        assert point["heard"]["frames"] >= 0.9 * point["expected_frames"]
        assert len(point["worker_shares"]) == point["workers"]
        assert 0 < point["server_share"] < 1
        assert 1920 <= point["bytes_per_entry"] < 4000
        assert point["loop_lag"]["count"] > 20
        assert point["first_frame"]["count"] == 16
    assert value(report, "a session: into the server") > 1920 * 50 * 8 / 1e6  # and the probes'
    assert value(report, "1 000 sessions: shards (processor binds)") >= 1
    assert value(report, "100 000 sessions: GPU workers") == 2605


@pytest.mark.long
@pytest.mark.alone
@pytest.mark.timeout(300)
def test_a_soak_ends_with_nothing_left(tmp_path: Path) -> None:
    plan = SoakPlan(
        minutes=0.2, warm_up_min=0.0, every_s=1.0, slots=8, callers=8, audio_ttl_s=2, seed=3
    )
    report = soak.run(plan, tmp_path)
    assert value(report, "turns answered") >= 8
    assert value(report, "turns answered otherwise than expected, or not at all") == 0
    for worker in (0, 1):
        assert value(report, f"worker {worker}, descriptors left") == 0
        assert value(report, f"worker {worker}, tasks left") == 0
    for left in ("server, descriptors left", "server, keys left", "workers lost"):
        assert value(report, left) == 0
    assert value(report, "slots taken at the end") == value(report, "sessions at the end") == 0
    assert len(report.series["samples"]) >= 12
    assert not list(tmp_path.iterdir())  # partial results are for a soak that did not end


@pytest.mark.long
@pytest.mark.alone
@pytest.mark.timeout(300)
def test_an_overload_answers_everybody_and_disturbs_nobody() -> None:
    plan = msgspec.structs.replace(
        overload.QUICK, times=4, per_s=4.0, before_s=1.0, flood_s=3.0, after_s=3.0
    )
    report = overload.run(plan)
    for name in ("4 live in 4 slots", "2 live in 4 slots"):
        assert value(report, f"{name}: requests of the flood") == 29
        assert value(report, f"{name}: expired") > 0
        assert value(report, f"{name}: answered otherwise or not at all") == 0
        assert value(report, f"{name}: begun after their deadline") == 0
    assert value(report, "all slots taken: slots not free at the end") == 0
    assert value(report, "half taken: slots not free at the end") == 0
