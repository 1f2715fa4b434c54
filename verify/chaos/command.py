"""``python -m verify chaos``."""

import sys
from pathlib import Path
from typing import Annotated, Final

import anyio
from cyclopts import Parameter
from rich.console import Console

from bench.testbed import ROOT
from verify.chaos.kinds import Topology

RESULTS: Final = ROOT / "bench" / "results"

Flag = Annotated[bool, Parameter(negative="")]


def chaos(
    *,
    topology: Topology = "standalone",
    seed: int = 1,
    seconds: float | None = None,
    turns: int | None = None,
    workers: int = 4,
    sessions: int = 60,
    only: str = "",
    heartbeat_ms: int | None = None,
    dead_after_ms: int | None = None,
    slots: int = 0,
    with_cosyvoice: Flag = False,
    server: Path | None = None,
    out: Path = RESULTS,
    runs: Path | None = None,
    keep: Flag = False,
) -> int:
    """Speak turns while faults are injected, and check what was received against the protocol.

    The exit status is 1 after a violation, or if a worker failed without a fault.

    Parameters
    ----------
    topology
        Of the servers, which are real processes.
    seed
        Of requests and schedule: the same seed, the same run.
    seconds
        How long faults are injected. Default: as long as the turns take.
    turns
        How many requests. Default: as many as the time holds, 1000 without either.
    workers
        Worker processes with the tone engine and the saboteur.
    sessions
        That speak side by side.
    only
        Kinds of faults, with commas: worker_kill,client_pause. Default: all.
    heartbeat_ms
        Of the workers. Default: theirs.
    dead_after_ms
        Of the workers. Default: theirs.
    slots
        Of each worker; 0: enough for all sessions.
    with_cosyvoice
        Also two workers with CosyVoice 2 of random weights. Needs the cosyvoice extra.
    server
        Another server than the bundled Valkey, such as /usr/bin/redis-server.
    out
        Where JSON and picture go.
    runs
        Where the folder of the run is made. Default: the system's temporary folder.
    keep
        Keep the run's journals and logs even if nothing was found.
    """
    from bench import machine
    from bench.report import Record
    from verify.chaos import plots, summary
    from verify.chaos import run as chaos_run

    console = Console(width=None if sys.stdout.isatty() else 150)
    options = chaos_run.Options(
        topology=topology,
        seed=seed,
        seconds=seconds,
        turns=turns,
        workers=workers,
        sessions=sessions,
        kinds=tuple(kind for kind in only.split(",") if kind),
        heartbeat_ms=heartbeat_ms,
        dead_after_ms=dead_after_ms,
        slots=slots,
        cosyvoice=2 if with_cosyvoice else 0,
        runs=runs,
        keep=keep,
        server=server,
    )
    here = machine.describe()
    console.print(chaos_run.schedule_of(options).table())

    async def run() -> chaos_run.Outcome:
        return await chaos_run.run(options, lambda line: console.print(line, highlight=False))

    outcome = anyio.run(run)
    summary.show(outcome, console)
    out.mkdir(parents=True, exist_ok=True)
    record = Record(here, summary.report_of(options, outcome))
    console.print(f"\nJSON and picture: {record.write(out)}, {plots.draw(record, out)}")
    return 0 if outcome.passed else 1
