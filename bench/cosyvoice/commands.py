"""``python -m bench engine`` and ``python -m bench gpu``."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from cyclopts import Parameter
from rich.console import Console

from bench import machine, table
from bench.cosyvoice import table as engine_table
from bench.cosyvoice.plan import ALONE, COMPARED, EnginePlan, Part, plan_of
from bench.report import Record, Report

PackName = Literal["tiny", "full"]
Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]

RESULTS: Final = Path(__file__).parent.parent / "results"

Flag = Annotated[bool, Parameter(negative="")]


def engine(
    *,
    pack: PackName = "tiny",
    device: Device = "auto",
    dtype: Dtype = "auto",
    eager: Flag = False,
    quick: Flag = False,
    against_upstream: Flag = False,
    only: Annotated[tuple[Part, ...], Parameter(negative="", consume_multiple=True)] = (),
    device_times: Flag = False,
    threads: int = 0,
    sessions: str | None = None,
    seconds: float | None = None,
    texts: str | None = None,
    packs: Path | None = None,
    note: tuple[str, ...] = (),
    suffix: str = "",
    no_picture: Flag = False,
    out: Path = RESULTS,
) -> int:
    """Measure the CosyVoice 2 engine alone, in this process. Needs the cosyvoice extra.

    Parameters
    ----------
    pack
        Random weights of this size.
    device
        auto: the GPU if there is one.
    dtype
        auto: bf16 on a GPU, fp32 on a CPU.
    eager
        Without CUDA graphs.
    quick
        Few and short loads: shows that everything runs.
    against_upstream
        Also drive the package cosyvoice, where it is, and its algorithm through our modules.
    only
        These parts. Several engines in one process can disturb each other on a GPU.
    device_times
        Time the stages with CUDA events too.
    threads
        Of the CPU's; 0: one for each core.
    sessions
        Those of the closed loads, with commas.
    seconds
        The length of each load.
    texts
        The shortest and the longest, in seconds of speech, with a comma: 2,12.
    packs
        Where packs are kept and looked for. Default: below the system's temporary folder.
    note
        A condition that the reader of the report has to know.
    suffix
        Of the names of the files.
    no_picture
        Write the JSON alone.
    out
        Where JSON and pictures go.
    """
    from bench.cosyvoice import engine as bench  # noqa: PLC0415  torch, when it is asked for

    plan = _plan(pack, device, dtype, eager, quick, threads, sessions, seconds, texts, note)
    plan = msgspec.structs.replace(plan, device_times=device_times, suffix=suffix)
    where = _packs(packs)
    parts = only or (COMPARED if against_upstream else ALONE)
    return _report(
        lambda tell: bench.run(pack, plan, where, parts=parts, tell=tell), plan, out, not no_picture
    )


def gpu(
    *,
    pack: PackName = "tiny",
    device: Device = "auto",
    dtype: Dtype = "auto",
    eager: Flag = False,
    quick: Flag = False,
    threads: int = 0,
    sessions: str | None = None,
    seconds: float | None = None,
    texts: str | None = None,
    packs: Path | None = None,
    note: tuple[str, ...] = (),
    no_picture: Flag = False,
    out: Path = RESULTS,
) -> int:
    """Measure the whole fleet path with CosyVoice 2, through Redis; on a CPU too.

    The parameters are those of ``engine``.
    """
    from bench.cosyvoice import gpu as bench  # noqa: PLC0415  torch, when it is asked for

    plan = _plan(pack, device, dtype, eager, quick, threads, sessions, seconds, texts, note)
    where = _packs(packs)
    return _report(lambda tell: bench.run(pack, plan, where, tell=tell), plan, out, not no_picture)


def _plan(
    pack: PackName,
    device: Device,
    dtype: Dtype,
    eager: bool,
    quick: bool,
    threads: int,
    sessions: str | None,
    seconds: float | None,
    texts: str | None,
    note: tuple[str, ...],
) -> EnginePlan:
    import torch  # noqa: PLC0415

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "bf16" if device == "cuda" else "fp32"
    between = tuple(map(float, texts.split(","))) if texts else ()
    return plan_of(
        pack,
        device,
        dtype,
        graphs=not eager,
        quick=quick,
        threads=threads,
        sessions=tuple(map(int, sessions.split(","))) if sessions else (),
        seconds=seconds,
        texts=(between[0], between[-1]) if between else None,
        words=note,
    )


def _packs(given: Path | None) -> Path:
    from bench.cosyvoice.packs import KEPT  # noqa: PLC0415

    return given or KEPT


Measure = Callable[[Callable[[Report], object]], Report]
"""A measurement: it is called with a function that takes each report so far."""


def _report(measure: Measure, plan: EnginePlan, out: Path, picture: bool) -> int:
    """Run it, write it down as it goes, and say how it went: 1 where a check failed."""
    import torch  # noqa: PLC0415

    accelerator = None
    if plan.device == "cuda":
        accelerator = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    console = Console(width=175)
    # Before the benches: the load average is to be that of the others.
    here = machine.describe(accelerator, "torch", *_installed("transformers", "cosyvoice2-eu"))
    table.show_machine(here, console)
    out.mkdir(parents=True, exist_ok=True)
    report = measure(lambda so_far: Record(here, so_far).write(out))
    record = Record(here, report)
    written = [record.write(out)]
    if not picture or not report.series["levels"]:
        pass
    elif find_spec("matplotlib") is None:
        console.print("no picture: matplotlib is not installed", highlight=False)
    else:
        from bench.cosyvoice import plots as engine_plots  # noqa: PLC0415

        written.append(engine_plots.draw(record, out))
    engine_table.show(report, console)
    console.print("\nwritten: " + ", ".join(map(str, written)), highlight=False)
    # A missed aim is a figure; a failed turn or a sync in the loop is an error.
    broken = [one for one in report.figures if one.target == 0 and one.met is False]
    broken = [one for one in broken if "underruns" not in one.name]
    return 1 if broken else 0


def _installed(*names: str) -> list[str]:
    found: list[str] = []
    for name in names:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        found.append(name)
    return found
