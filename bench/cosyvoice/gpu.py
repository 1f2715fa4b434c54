"""The whole fleet path with CosyVoice 2: XADD, worker, engine process, frames, XREAD.

A server, a worker process with its engine's process, and a reader in this one. The loads are those
of the engine bench, so that the two reports can be laid beside each other: what this one has more
is text feed, loudness, framing, pacing, Redis and the way between the worker's two processes.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from bench.cosyvoice.engine import AIMS
from bench.cosyvoice.fleet import RATE, Fleet, worker_record
from bench.cosyvoice.level import Level, figures_of, level_of
from bench.cosyvoice.load import Closed
from bench.cosyvoice.packs import PackName, pack_of
from bench.cosyvoice.plan import EnginePlan
from bench.cpu_time import CpuMark
from bench.percentiles import Percentiles
from bench.report import Figure, Report, figure
from bench.testbed import ROOT, Testbed, testbed
from voicefleet.worker.voicepacks.voicepack import Voicepack

CONFIG: Final = ROOT / "configs/cosyvoice2.yaml"
_READY_S: Final = 240.0


def run(
    pack_name: PackName,
    plan: EnginePlan,
    packs: Path,
    *,
    tell: Callable[[Report], object] = id,
) -> Report:
    """Measure one pack on one device in one precision; ``tell`` hears of it after each load."""
    pack = pack_of(pack_name, packs)
    slots = max(plan.sessions)
    engine = {
        "device": plan.device,
        "dtype": plan.dtype,
        "slots": slots,
        "max_slots": slots,
        "cuda_graphs": "auto" if plan.graphs else "off",
        "threads": plan.threads,
        # A machine that others use too must not make it look hung.
        "synthesis_timeout_s": 60,
        "load_timeout_s": _READY_S,
    }
    settings = (
        f"worker.models={pack.model_id}",
        f"model_manager.default_model_id={pack.model_id}",
        f"model_manager.voicepacks_dir={packs.resolve()}",
        *(f"engine.cosyvoice2.{name}={value}" for name, value in engine.items()),
    )
    levels: list[Level] = []
    begun = time.monotonic()
    with testbed(CONFIG, pack.model_id, *settings, ready_s=_READY_S) as bed:
        ready_ms = 1000 * (time.monotonic() - begun)
        fleet = Fleet(bed, slots)
        fleet.run(Closed(1, 0.0, together=True, texts=(2.0, 2.0)))
        for load, sessions in plan.loads():
            if load.name == "greedy":
                continue  # the worker's pacing holds every turn to real time
            levels.append(_level(bed, fleet, load, sessions))
            tell(_report(pack_name, pack, plan, levels, ready_ms))
        taken = Percentiles.of(1000 * s for s in fleet.taken_over_s(plan.repeats * 3))
        record = worker_record(bed)
    return _report(pack_name, pack, plan, levels, ready_ms, taken, record)


def _report(
    pack_name: PackName,
    pack: Voicepack,
    plan: EnginePlan,
    levels: list[Level],
    ready_ms: float,
    taken: Percentiles | None = None,
    record: dict[str, str] | None = None,
) -> Report:
    """``taken`` and ``record`` come last: a report without them is of a bench that goes on."""
    on_gpu = plan.device == "cuda"
    judged = AIMS if on_gpu and pack_name == "full" and plan.graphs and plan.dtype == "bf16" else {}
    figures: list[Figure] = []
    for level in levels:
        figures += figures_of(level, judged)
        figures.append(figure(f"{level.name}, worker process", level.more["worker_cpu"], "cores"))
    if taken is not None:
        figures += [
            figure(
                f"stop to the waiting turn's start entry, {which}",
                getattr(taken, which),
                "ms",
                samples=taken.count,
            )
            for which in ("p50", "p95", "max")
        ]
    figures.append(figure("server and worker started, model warm", ready_ms, "ms"))
    for field in ("vram_used_mb", "vram_total_mb", "session_mb", "voice_mb"):
        if record and field in record:
            figures.append(figure(f"worker record, {field}", float(record[field]), "MiB"))
    return Report(
        bench=f"gpu_{plan.label(pack_name)}",
        title=f"The fleet with CosyVoice 2: {pack_name} pack, {plan.machine_word}, {plan.dtype}"
        + ("" if plan.graphs or not on_gpu else ", without graphs"),
        conditions=(
            f"random weights in the official layout ({pack.model_id}): the work is that of the "
            "published model of this size, the sound is noise; 1.8 speech tokens a character",
            "server, worker, its engine's process and this reader on one machine; "
            f"{max(plan.sessions)} slots, frames of 20 ms at {RATE} Hz; each turn is a session of "
            "its own",
            "first audio is from the moment a turn was due to the arrival of its first frame; a "
            "listener plays in real time from then on, and a frame that comes after its place is "
            "an underrun; audible is the first sample above -50 dB of the turn's peak",
            "stop to slot free is here the SET of the control key to the arrival of the end entry, "
            "and in rounds where all slots are taken, to the start entry of the turn that waited",
            f"texts of {plan.texts[0]:g} to {plan.texts[1]:g} s; {plan.seconds:g} s for each load",
            *plan.words,
        ),
        figures=tuple(figures),
        series={
            "levels": [msgspec.to_builtins(level) for level in levels],
            "worker_record": record or {},
            "complete": record is not None,
        },
    )


def _level(bed: Testbed, fleet: Fleet, load: Any, sessions: float) -> Level:
    before = CpuMark.of(bed.worker)
    found = fleet.run(load)
    cores = before.share_until(CpuMark.of(bed.worker))
    return level_of(
        load.name,
        sessions,
        found.heard,
        found.began_at,
        found.waited,
        worker_cpu=cores,
        most_at_once=found.highest,
    )
