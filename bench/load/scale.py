"""How many sessions one worker and four workers carry on this machine, and what limits them.

From the cost of a session at the largest steady point follows what 1 000, 10 000 and 100 000
sessions need.
"""

import time
from collections.abc import Iterable
from functools import partial
from itertools import count
from typing import Final

import msgspec
import psutil

from bench.cpu_time import CpuMark
from bench.live_sessions import START_PER_S
from bench.load import sizing
from bench.load.call import Call, Step, asking
from bench.load.callers import Callers
from bench.load.fleet import MODEL, fleet
from bench.load.point import FULL, PROBE_TEXT, PROBES_PER_S, STEADY_MS, WINDOW_S, Point, measure
from bench.load.sizing import Costs, Need
from bench.report import Figure, Report, figure
from voicefleet.schemas.keys import Keys
from voicefleet.worker.config.sections import WorkerConfig
from voicefleet.worker.heartbeat import UNLISTED_CHECK_BEATS

_TURN_CALLERS: Final = 8
_LOOK_S: Final = 0.1


class ScalePlan(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes. ``one`` and ``several`` are numbers of sessions, ``seconds`` the length of a point."""

    one: tuple[int, ...] = (1, 8, 32, 64, 100, 150, 200)
    several: tuple[int, ...] = (100, 200, 300, 400, 500)
    workers: int = 4
    seconds: float = 10.0


QUICK: Final = ScalePlan(one=(1, 8), several=(16,), workers=2, seconds=2.0)


def run(plan: ScalePlan) -> Report:
    """Measure every point, then compute the sizes."""
    points = [measure(1, sessions, plan.seconds) for sessions in plan.one]
    points += [measure(plan.workers, sessions, plan.seconds) for sessions in plan.several]
    base = _base(points)
    each = sizing.costs(base, _turn_us(plan.seconds), *sizing.beat_costs())
    needs = [sizing.need(sessions, each) for sessions in sizing.SIZES]
    figures = [one for point in points for one in _point_figures(point)]
    figures += _bend_figures(points)
    figures += _cost_figures(each)
    figures += [one for need in needs for one in _need_figures(need)]
    return Report(
        bench="scale",
        title="Sessions a worker carries, four workers carry, and a fleet would need",
        conditions=(*_conditions(plan, points), *_assumptions(base, each)),
        figures=tuple(figures),
        series={
            "points": [_row(point) for point in points],
            "costs": msgspec.to_builtins(each),
            "needs": [msgspec.to_builtins(need) for need in needs],
        },
    )


def _base(points: list[Point]) -> Point:
    """One worker's largest steady point, or its smallest point if none is steady."""
    alone = [point for point in points if point.workers == 1]
    steady = [point for point in alone if not point.bends]
    return max(steady, key=lambda p: p.sessions) if steady else min(alone, key=lambda p: p.sessions)


def _at(point: Point) -> str:
    plural = "s" if point.workers > 1 else ""
    return f"{point.workers} worker{plural}, {point.sessions} sessions"


def _point_figures(point: Point) -> list[Figure]:
    at, heard = _at(point), point.heard
    return [
        figure(f"{at}: off the grid, p50", heard.off_grid.p50, "ms", samples=heard.frames),
        figure(f"{at}: off the grid, p95", heard.off_grid.p95, "ms", samples=heard.frames),
        figure(f"{at}: off the grid, p99", heard.off_grid.p99, "ms", samples=heard.frames),
        figure(f"{at}: off the grid, max", heard.off_grid.max, "ms", samples=heard.frames),
        figure(f"{at}: underruns heard", heard.gap_share * 100, "%", samples=heard.frames),
        figure(
            f"{at}: first frame, p95", point.first_frame.p95, "ms", samples=point.first_frame.count
        ),
        figure(f"{at}: loop lag, p99", point.loop_lag.p99, "ms", samples=point.loop_lag.count),
        figure(f"{at}: workers, of a core", point.worker_share * 100, "%"),
        figure(f"{at}: server, of a core", point.server_share * 100, "%"),
        figure(f"{at}: reader, of a core", point.listener_share * 100, "%"),
        figure(f"{at}: all else, of a core", point.others_share * 100, "%"),
    ]


def _bend_figures(points: list[Point]) -> list[Figure]:
    """The largest steady number of sessions, by number of workers."""
    figures: list[Figure] = []
    for workers in sorted({point.workers for point in points}):
        steady = [p.sessions for p in points if p.workers == workers and not p.bends]
        name = f"most sessions in stride, {workers} worker{'s' if workers > 1 else ''}"
        figures.append(figure(name, max(steady, default=0), ""))
    return figures


def _cost_figures(each: Costs) -> list[Figure]:
    return [
        figure("a session: worker, of a core", each.worker_share * 100, "%"),
        figure("a session: server, of a core", each.server_share * 100, "%"),
        figure("a session: server memory", each.memory_mb, "MB"),
        figure("a session: into the server", each.mbit_in, "Mbit/s"),
        figure("a session: out of the server", each.mbit_out, "Mbit/s"),
        figure("a turn: server", each.turn_us, "us"),
        figure("a heartbeat: server, alone", each.beat_us, "us"),
        figure("a heartbeat: server, more for each worker", each.beat_us_per_worker, "us"),
    ]


def _need_figures(need: Need) -> list[Figure]:
    at = f"{need.sessions:,} sessions".replace(",", " ")
    return [
        figure(f"{at}: shards ({need.shard_binds} binds)", need.shards, ""),
        figure(f"{at}: sessions a shard", need.shard_sessions, ""),
        figure(f"{at}: memory a shard", need.shard_memory_gb, "GB"),
        figure(f"{at}: into a shard", need.shard_gbit_in, "Gbit/s"),
        figure(f"{at}: worker cores, engine apart", need.worker_cores, ""),
        figure(f"{at}: GPU workers", need.gpu_workers, ""),
        figure(f"{at}: one queue, of a server core", need.queue_share * 100, "%"),
        figure(f"{at}: heartbeats, of a server core", need.registry_share * 100, "%"),
    ]


def _conditions(plan: ScalePlan, points: list[Point]) -> tuple[str, ...]:
    lead = WorkerConfig().lead_ms
    return (
        f"tone engine at rtf 0, 48 kHz, lead {lead} ms, {WINDOW_S} s of audio kept, "
        f"{plan.seconds:g} s for each point after {START_PER_S} beginnings a second; all processes "
        "on this machine, nobody bound to a core",
        "an underrun is a frame that comes after its time to be played, by a listener that began "
        "with the turn's first frame; a point bends where one is heard, where the p95 distance "
        f"from the grid is above {STEADY_MS:g} ms or where frames are missing",
        f"binds: {'; '.join(f'{_at(p)}: {p.binds}' for p in points if p.bends) or 'no point bends'}"
        f" (who uses {FULL:.0%} of a core or of the machine)",
        "all else: the probes' process and whatever else ran on the machine; where that is much, "
        "the machine was not ours alone and bends too early",
        f"first frame: text {PROBE_TEXT!r} in a session of its own, engine time included; loop "
        "lag: a timer of the bench in the worker, of which up to 1 ms is the loop's own rounding; "
        f"{PROBES_PER_S} such probes a second count into all shares, as two sessions more would",
        "one reader listens to all sessions with one blocked XREAD; the server's share is with it",
    )


def _assumptions(base: Point, each: Costs) -> tuple[str, ...]:
    config = WorkerConfig()
    return (
        f"a session's costs are those at {_at(base)}; its memory is "
        f"{base.bytes_per_entry:.0f} bytes an entry over a window of {config.audio_window_s:g} s",
        f"assumed: no core, link of {sizing.LINK_GBIT:g} Gbit/s, memory of "
        f"{sizing.SHARD_MEMORY_GB:g} GB or set of slots is filled above {sizing.HEADROOM:.0%}; "
        "everybody speaks all the time; each frame is delivered once; cores like this one's; a "
        "Cluster's shard costs what a lone server costs; no replicas (each doubles a shard's "
        "memory and adds its input to the output)",
        f"assumed: {sizing.GPU_SLOTS} slots a GPU worker with CosyVoice 2, which is not measured; "
        f"a turn of each session every {sizing.TURN_EVERY_S:g} s",
        f"one queue: all of a turn's {each.turn_us:.0f} us as if on the queue's own server, which "
        "is more than its part; heartbeats: every worker asks for all workers and all consumers "
        f"with every {UNLISTED_CHECK_BEATS}th beat of {config.heartbeat_ms} ms, which grows with "
        "the square of the fleet: above 100 % it has to be divided, by prefix or by model",
    )


def _turn_us(seconds: float) -> float:
    """The server's processor time for a short turn and its frames, in us, above an idle fleet's."""
    scripts = [partial(_short_turns, i) for i in range(_TURN_CALLERS)]
    with fleet(1) as on:
        process = on.server_process
        idle = CpuMark.of(process)
        time.sleep(seconds)
        idle_share = idle.share_until(CpuMark.of(process))
        with Callers(on.server.port, scripts) as callers:
            return _busy_turn_us(process, callers, seconds, idle_share)


def _busy_turn_us(
    process: psutil.Process, callers: Callers, seconds: float, idle_share: float
) -> float:
    callers.answers(seconds)  # they have started by now
    begin, answered = CpuMark.of(process), 0
    while (CpuMark.of(process).at - begin.at) / 1e9 < seconds:
        answered += len(callers.answers(_LOOK_S))
    end = CpuMark.of(process)
    callers.stop()
    callers.rest()
    busy_share = max(0.0, begin.share_until(end) - idle_share)
    return busy_share * (end.at - begin.at) / 1e3 / max(1, answered)


def _short_turns(caller: int) -> Iterable[Call]:
    keys = Keys()
    for i in count():
        session = f"short-{caller}-{i}"
        command = asking(keys, MODEL, session, "r1", text=PROBE_TEXT, lead_ms=0)
        yield Call(
            session=session,
            kind="plain",
            steps=(Step(at_s=0.0, request="r1", command=command),),
        )


def _row(point: Point) -> dict[str, object]:
    fields = msgspec.to_builtins(point)
    return fields | {"bends": point.bends, "binds": point.binds}
