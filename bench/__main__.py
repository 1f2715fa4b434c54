"""``python -m bench``: run the benches, print their tables, write their JSON and pictures."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

import msgspec
from cyclopts import App, Parameter
from rich.console import Console

from bench import load_commands, machine, table
from bench.cosyvoice import commands as engine_commands
from bench.plan import QUICK, Plan
from bench.report import Record, Report

Name = Literal[
    "first_frame", "control", "full_fleet", "jitter", "cpu", "piper", "piper_together", "memory"
]

RESULTS: Final = Path(__file__).parent / "results"

app = App(name="bench", help="Measure the fleet against its targets.", help_format="plaintext")
app.command(engine_commands.engine)
app.command(engine_commands.gpu)
app.command(load_commands.scale)
app.command(load_commands.soak)
app.command(load_commands.overload)


@app.default
def bench(
    names: Annotated[tuple[Name, ...], Parameter(negative="")] = (),
    /,
    *,
    quick: Annotated[bool, Parameter(negative="")] = False,
    probes: int | None = None,
    seconds: float | None = None,
    sessions: str | None = None,
    turns: int | None = None,
    rounds: int | None = None,
    out: Path = RESULTS,
) -> None:
    """Run the benches.

    Parameters
    ----------
    names
        Which ones. Default: all.
    quick
        Small sizes: shows that everything runs, not how fast it is.
    probes
        Single events timed for each latency.
    seconds
        The length of each steady state.
    sessions
        The sizes of the load sweep, with commas: 8,64,200.
    turns
        Of the memory bench.
    rounds
        How often each text is spoken by each Piper.
    out
        Where JSON and pictures go.
    """
    sizes = {
        "probes": probes,
        "seconds": seconds,
        "sessions": tuple(map(int, sessions.split(","))) if sessions else None,
        "turns": turns,
        "rounds": rounds,
    }
    given = {name: value for name, value in sizes.items() if value is not None}
    from bench import plots  # noqa: PLC0415  matplotlib, which the engine's benches can do without

    plan = msgspec.structs.replace(QUICK if quick else Plan(), **given)
    console = Console(width=None if sys.stdout.isatty() else 110)
    out.mkdir(parents=True, exist_ok=True)
    here = machine.describe()
    table.show_machine(here, console)
    reports: list[Report] = []
    for name in names or get_args(Name):
        report: Report = import_module(f"bench.{name}").run(plan)
        record = Record(here, report)
        record.write(out)
        plots.draw(record, out)
        table.show_report(report, console)
        reports.append(report)
    table.show_verdict(reports, console)
    console.print(f"\nJSON and pictures: {out}", highlight=False)


if __name__ == "__main__":
    sys.exit(app())
