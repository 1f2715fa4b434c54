"""Many malformed inputs: ``python -m verify fuzz --inputs 100000 --seed 7``.

What is fed, how it is drawn and what counts as a find is in ``verify/fuzz``; the same campaigns, a
few hundred inputs each, are tests. Targets that read models take a hundred times as long for an
input as those that read a field: they get a smaller share.
"""

from pathlib import Path
from typing import Annotated, Final

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from bench import machine, table
from bench.report import Record, Report, figure
from bench.testbed import ROOT
from verify.fuzz import campaign
from verify.fuzz.campaign import GROWTH_MB, Find, hunt
from verify.fuzz.targets import TARGETS, lacking

LIVE: Final = "live"
"""The target that attacks a running worker and its keys."""

SHARES: Final = {
    **{"protocol": 50, "settings": 30, "connections": 40, "sizes": 17, "recordings": 20},
    **{"voices": 20, "checkpoints": 12, "piper": 6, LIVE: 40},
}
"""Inputs per thousand for each target of a kind, about."""

IN_ONE_PROCESS: Final = 5_000
RESULTS: Final = ROOT / "bench" / "results"


def fuzz(
    *,
    inputs: int = 100_000,
    seed: int = 1,
    targets: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    out: Path = RESULTS,
) -> int:
    """Feed malformed inputs to every parser; the exit status is 1 if something broke.

    Parameters
    ----------
    inputs
        How many in all.
    seed
        Other inputs for each.
    targets
        Which ones. Default: all whose packages are installed.
    out
        Where the JSON goes.
    """
    console = Console(highlight=False)
    lacks = {name: packages for name in TARGETS if (packages := lacking(name))}
    names = targets or (*(name for name in TARGETS if name not in lacks), LIVE)
    shares = {name: SHARES[name if name == LIVE else TARGETS[name].module] for name in names}
    reports: list[campaign.Report] = []
    for name, share in shares.items():
        count = max(1, round(inputs * share / sum(shares.values())))
        reports.append(_campaign(name, seed, count))
        _show(reports[-1], console)
    report = _report(reports, seed, lacks)
    out.mkdir(parents=True, exist_ok=True)
    Record(machine.describe(), report).write(out)
    _show_table(reports, console)
    table.show_report(report, console)
    return 1 if any(one.finds for one in reports) else 0


def _campaign(name: str, seed: int, count: int) -> campaign.Report:
    if name == LIVE:
        from verify.fuzz.live import assault

        return assault(seed, count)
    whole = campaign.Report(target=name, seed=seed)
    for first in range(0, count, IN_ONE_PROCESS):
        part = hunt(name, seed=seed, first=first, count=min(IN_ONE_PROCESS, count - first))
        whole.inputs += part.inputs
        whole.taken += part.taken
        whole.refused += part.refused
        whole.seconds += part.seconds
        whole.growth_mb = max(whole.growth_mb, part.growth_mb)
        if part.slowest_ms > whole.slowest_ms:
            whole.slowest_ms, whole.slowest = part.slowest_ms, part.slowest
        whole.finds = [*whole.finds, *part.finds]
    return whole


def _report(reports: list[campaign.Report], seed: int, lacks: dict[str, list[str]]) -> Report:
    finds: list[Find] = [find for one in reports for find in one.finds]
    total = sum(one.inputs for one in reports)
    seconds = sum(one.seconds for one in reports)
    return Report(
        bench="fuzz",
        title=f"{total} hostile inputs for {len(reports)} targets",
        conditions=(
            f"seed {seed}; `python -m verify.fuzz replay TARGET SEED NUMBER` makes any anew",
            f"a find is an error of no documented type, an input of more than "
            f"{campaign.HANG_S:g} s, more than 1 GiB (a pickle: 6) asked for, code that ran, a "
            "process that died, or an answer that the documentation rules out",
            f"memory: growth of the resident set after the first tenth of up to {IN_ONE_PROCESS} "
            "inputs in one process",
            *(f"left out: {name}, which needs {', '.join(of)}" for name, of in lacks.items()),
        ),
        figures=(
            figure("finds", len(finds), "", target=0, samples=total),
            figure(
                "most growth of memory",
                max(one.growth_mb for one in reports),
                "MB",
                target=GROWTH_MB,
                samples=len(reports),
            ),
            figure(
                "slowest input that is alone",
                max((one.slowest_ms for one in reports if one.target != LIVE), default=0.0),
                "ms",
                target=campaign.HANG_S * 1000,
                samples=total,
            ),
            figure("taken", sum(one.taken for one in reports), ""),
            figure("refused", sum(one.refused for one in reports), ""),
            figure("time", seconds, "s"),
        ),
        series={"targets": [msgspec.to_builtins(one) for one in reports]},
    )


def _show(report: campaign.Report, console: Console) -> None:
    console.print(f"{report.target}: {report.inputs} inputs in {report.seconds:.0f} s")
    for find in report.finds:
        console.print(f"  #{find.number} {find.what} {find.place} {find.detail}", markup=False)


def _show_table(reports: list[campaign.Report], console: Console) -> None:
    shown = Table()
    shown.add_column("target")
    for head in ("inputs", "taken", "refused", "finds", "growth, MB", "slowest, ms", "s"):
        shown.add_column(head, justify="right")
    for one in reports:
        shown.add_row(
            one.target,
            *(str(count) for count in (one.inputs, one.taken, one.refused, len(one.finds))),
            *(f"{value:.0f}" for value in (one.growth_mb, one.slowest_ms, one.seconds)),
        )
    console.print(shown)
