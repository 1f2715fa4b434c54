"""The engine alone: its loop in this process, driven by listeners who listen in real time.

Four loads. *closed*: N listeners, each asks again when it has heard its turn. *together*: the same,
and all begin at the same moment. *open*: turns come at a rate, whoever still listens. *greedy*: N
sessions whose audio is taken as soon as it is made, which shows how fast the engine can be.
"""

import resource
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import msgspec
import torch

from bench.cosyvoice import batching as engine_batching
from bench.cosyvoice import meter as engine_meter
from bench.cosyvoice.drive import Drive
from bench.cosyvoice.level import Level, figures_of, level_of
from bench.cosyvoice.load import Closed, Load
from bench.cosyvoice.operations import Operations, Tally, counted_synchronisations
from bench.cosyvoice.packs import PackName, pack_of
from bench.cosyvoice.plan import ALONE, EnginePlan, Part
from bench.report import Figure, Report, figure
from voicefleet.worker.engines.cosyvoice2.family import CosyVoice2Config
from voicefleet.worker.engines.hosting.cores import factory_of
from voicefleet.worker.engines.protocol import EngineError
from voicefleet.worker.voicepacks.voicepack import Voicepack

AIMS: Final = {"1": 60.0, "16": 150.0, "64": 300.0, "stop": 20.0, "underruns": 0.0, "rtf": 1 / 150}
"""On one H100 at full size: ms to the first audio (p95) by sessions, and other aims."""

LOAD_AIM_MS: Final = 20_000.0
WARM_UP_TEXT: Final = "The quick brown fox jumps over the lazy dog."
BRIEF_WARM_UP_TEXT: Final = "Hello there."
_MB: Final = 2**20


ONE_SLOT: Final = "this engine with one slot"
UPSTREAM: Final = "cosyvoice2-upstream"
EXACT: Final = "upstream's algorithm through our modules"


class Findings(msgspec.Struct, kw_only=True):
    """What has been measured so far."""

    levels: list[Level] = []
    timings: dict[str, float] = {}
    loop: Operations | None = None
    batching: dict[str, Any] = {}
    baselines: dict[str, list[Level]] = {}
    baseline_notes: list[str] = []


def run(
    pack_name: PackName,
    plan: EnginePlan,
    packs: Path,
    *,
    parts: Sequence[Part] = ALONE,
    tell: Callable[[Report], object] = id,
) -> Report:
    """Measure one pack on one device in one precision.

    Args:
        pack_name: Random weights of this size.
        plan: How much is measured.
        packs: Where packs are kept.
        parts: What is measured, in that order.
        tell: Called with what there is so far after each load and each part.
    """
    pack = pack_of(pack_name, packs)
    config = CosyVoice2Config(
        device=plan.device,
        dtype=plan.dtype,
        slots=max(plan.sessions),
        max_slots=max(plan.sessions),
        cuda_graphs="auto" if plan.graphs else "off",
        threads=plan.threads,
    )
    found = Findings()

    def so_far() -> None:
        tell(_report(pack_name, pack, plan, found, complete=False))

    for part in parts:
        if part == "levels":
            _native(pack, config, plan, found, so_far)
        elif part == "batching":
            found.batching = engine_batching.measure(
                pack, config, plan.rows, plan.device, plan.dtype, plan.repeats
            )
        else:
            _baseline(part, pack, config, plan, found)
        so_far()
    return _report(pack_name, pack, plan, found, complete=True)


def _report(
    pack_name: PackName, pack: Voicepack, plan: EnginePlan, found: Findings, *, complete: bool
) -> Report:
    on_gpu = plan.device == "cuda"
    judged = AIMS if on_gpu and pack_name == "full" and plan.graphs and plan.dtype == "bf16" else {}
    figures: list[Figure] = []
    for level in found.levels:
        figures += figures_of(level, judged)
        figures += _stage_figures(level)
    if found.timings:
        until_ready = sum(found.timings.values())
        most = LOAD_AIM_MS if judged else None
        figures.append(figure("load and warm-up", until_ready, "ms", target=most))
        figures += [figure(f"  {phase}", ms, "ms") for phase, ms in found.timings.items()]
    if found.loop is not None:
        figures += _loop_figures(found.loop)
    if found.batching:
        figures += _batching_figures(found.batching)
    for name, levels in found.baselines.items():
        for level in levels:
            figures += [
                msgspec.structs.replace(one, name=f"{name}: {one.name}")
                for one in figures_of(level, {})
            ]
    series: dict[str, Any] = {
        "levels": msgspec.to_builtins(found.levels),
        "baselines": msgspec.to_builtins(found.baselines),
        "timings_ms": found.timings,
        "complete": complete,
    }
    if found.batching:
        series["batching"] = msgspec.to_builtins(found.batching)
    if found.loop is not None:
        series["loop"] = msgspec.to_builtins(found.loop)
    return Report(
        bench=f"engine_{plan.label(pack_name)}",
        title=f"The CosyVoice 2 engine alone: {pack_name} pack, {plan.machine_word}, {plan.dtype}"
        + ("" if plan.graphs or not on_gpu else ", without graphs"),
        conditions=(
            f"random weights in the official layout ({pack.model_id}): the work is that of the "
            "published model of this size, the sound is noise; such a pack speaks 1.8 tokens for "
            "each character of text, 25 a second, so that texts are as long as they would be",
            f"texts of {plan.texts[0]:g} to {plan.texts[1]:g} s of speech, cut into segments by "
            "the worker's own segmenter; a voice with 3 s of prompt",
            "a listener plays in real time from the first audio on; an underrun is a sample that "
            "was needed before it was made, after which playing goes on later; audible is the "
            "first sample above -50 dB of the turn's peak",
            "times count from the moment a turn was due, even if the loop or a slot was not free",
            "RTF is measured in the greedy loads; a paced session waits for its listener",
            "one turn for each session"
            if plan.brief
            else f"{plan.seconds:g} s for each closed or open load, and what was begun is finished",
            *plan.words,
            "baseline: " + "; ".join(found.baseline_notes)
            if found.baseline_notes
            else "not compared with upstream in this run",
        ),
        figures=tuple(figures),
        series=series,
    )


def _native(
    pack: Voicepack,
    config: CosyVoice2Config,
    plan: EnginePlan,
    found: Findings,
    so_far: Callable[[], None],
) -> None:
    """The levels, the milliseconds of load and warm-up by phase, and the loop's operations."""
    drive = Drive(config.slots)
    core: Any = factory_of("cosyvoice2")(pack, config, drive.emit)
    drive.core = core
    try:
        core.load()
        core.warm_up(BRIEF_WARM_UP_TEXT if plan.brief else WARM_UP_TEXT)
        found.timings = dict(core.timings)
        meter = engine_meter.watch(core, device_times=plan.device_times)
        for load, sessions in plan.loads():
            found.levels.append(_level(drive, meter, load, sessions))
            so_far()
        found.loop = _tally(drive, plan)
    finally:
        core.close()


def _level(drive: Drive, meter: engine_meter.Meter, load: Load, sessions: float) -> Level:
    meter.reset()
    _reset_memory()
    used = time.process_time()
    found = drive.run(load)
    used = time.process_time() - used
    stages = meter.read()
    wall_s = max(sum(stages[name].seconds for name in ("step",)), 1e-9)
    decode = stages.get("decode", engine_meter.Stage())
    more: dict[str, Any] = {
        "stages": {
            name: {
                "runs": stage.runs,
                "ms": round(1000 * stage.seconds, 3),
                "device_ms": round(1000 * stage.device_s, 3),
                "share": stage.seconds / wall_s,
                "mean_rows": stage.mean_rows,
            }
            for name, stage in stages.items()
        },
        "decode_step_ms": 1000 * (decode.device_s or decode.seconds) / max(1, decode.units),
        "decode_rows": decode.mean_rows,
        "memory_mb": _memory_mb(),
        "cpu_s": used,
        "most_at_once": found.highest,
    }
    return level_of(load.name, sessions, found.heard, found.began_at, found.waited, **more)


def _tally(drive: Drive, plan: EnginePlan) -> Operations:
    """What the whole loop dispatches while it serves its sessions, waits included."""
    load = Closed(min(2, max(plan.sessions)), 0.1, paced=False, texts=(2.0, 3.0))
    with Tally() as tally, counted_synchronisations() as synchronised:
        found = drive.run(load)
    operations = tally.found
    if plan.device == "cuda":
        operations.synchronised_a_turn = len(synchronised) / len(found.heard)
    return operations


def _baseline(
    part: Part, pack: Voicepack, config: CosyVoice2Config, plan: EnginePlan, found: Findings
) -> None:
    """One that speaks one turn at a time: ours, upstream where it is installed, or its way."""
    # A step computes every slot: with one, ours is as alone as the others are.
    one = msgspec.structs.replace(config, slots=1, max_slots=1)
    if part == "one-slot":
        found.baselines[ONE_SLOT] = _alone("cosyvoice2", pack, one, plan)
        found.baseline_notes.append(ONE_SLOT)
    elif part == "upstream-exact":
        exact = msgspec.structs.replace(one, upstream_exact=True)
        found.baselines[EXACT] = _alone("cosyvoice2", pack, exact, plan)
        found.baseline_notes.append(f"{EXACT} (upstream_exact), one turn at a time")
    elif find_spec("cosyvoice") is None:
        found.baseline_notes.append("the package cosyvoice is not installed here")
    else:
        try:
            official = msgspec.structs.replace(one, implementation="upstream")
            found.baselines[UPSTREAM] = _alone(UPSTREAM, pack, official, plan)
            found.baseline_notes.append(
                "the package cosyvoice behind our protocol, one turn at a time"
            )
        except (EngineError, ImportError, RuntimeError) as error:
            found.baseline_notes.append(
                f"the package cosyvoice is here but could not be measured: {error}"
            )


def _alone(
    core_name: str, pack: Voicepack, config: CosyVoice2Config, plan: EnginePlan
) -> list[Level]:
    """One listener, and one session as fast as it can be."""
    drive = Drive(1)
    core: Any = factory_of(core_name)(pack, config, drive.emit)
    drive.core = core
    try:
        core.load()
        core.warm_up(BRIEF_WARM_UP_TEXT if plan.brief else WARM_UP_TEXT)
        levels: list[Level] = []
        greedy = Closed(
            1, 0.0 if plan.brief else plan.seconds, paced=False, name="greedy", texts=plan.texts
        )
        loads = [greedy] if plan.brief else [Closed(1, plan.seconds, texts=plan.texts), greedy]
        for load in loads:
            used = time.process_time()
            found = drive.run(load)
            used = time.process_time() - used
            levels.append(level_of(load.name, 1, found.heard, found.began_at, cpu_s=used))
    finally:
        core.close()
    return levels


def _stage_figures(level: Level) -> list[Figure]:
    stages: dict[str, Any] = level.more["stages"]
    if level.load not in ("closed", "greedy"):
        return []
    figures = [
        figure(f"{level.name}, decode step", level.more["decode_step_ms"], "ms"),
        figure(f"{level.name}, sessions in a decode step", level.more["decode_rows"], ""),
        figure(f"{level.name}, sessions in a flow batch", stages["flow"]["mean_rows"], ""),
    ]
    for name in (*engine_meter.STAGES, "host"):
        stage = stages.get(name)
        if stage and stage["runs"]:
            figures.append(figure(f"{level.name}, {name}", 100 * stage["share"], "% of the loop"))
    for name, value in level.more["memory_mb"].items():
        figures.append(figure(f"{level.name}, memory {name}", value, "MiB"))
    return figures


def _loop_figures(loop: Operations) -> list[Figure]:
    figures: list[Figure] = []
    if loop.synchronised_a_turn is not None:
        name = "CUDA calls that stop the host, in a turn"
        figures.append(figure(name, loop.synchronised_a_turn, ""))
    return [
        *figures,
        figure(
            "operations of the loop that stop the host",
            sum(loop.waiting.values()),
            "",
            target=0,
            samples=loop.launches,
        ),
    ]


def _batching_figures(batching: dict[str, Any]) -> list[Figure]:
    figures: list[Figure] = []
    for what, points in batching.items():
        if what == "operations":
            continue
        unit = "tokens/s" if what == "decode" else "x real time"
        noun = "step" if what == "decode" else "batch"
        for point in (points[0], points[-1]):
            rows = f"{point['rows']:g} sessions"
            figures.append(figure(f"{what}, {noun} of {rows}", point["ms"], "ms"))
            figures.append(figure(f"{what}, {rows}", point["per_second"], unit))
    for rows, found in batching["operations"].items():
        for what, operations in found.items():
            figures.append(figure(f"launches, {what}, {rows} sessions", operations.launches, ""))
            figures.append(
                figure(
                    f"waits, {what}, {rows} sessions",
                    sum(operations.waiting.values()),
                    "",
                    target=0,
                )
            )
    return figures


def _reset_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _memory_mb() -> dict[str, float]:
    """The most that was in use, of the device or of this process."""
    if torch.cuda.is_available():
        return {
            "allocated": torch.cuda.max_memory_allocated() / _MB,
            "reserved": torch.cuda.max_memory_reserved() / _MB,
        }
    found = {"resident, highest": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found["resident"] = pages * resource.getpagesize() / _MB
    return found
