"""A run's outcome, for people and as a bench's report."""

import msgspec
from rich.console import Console

from bench.report import Report, figure
from verify.chaos.run import Options, Outcome

TAKE_OVER_P95_S = 2.5
RECOVERY_S = 5.0
FINDINGS_SHOWN = 25


def show(outcome: Outcome, console: Console) -> None:
    """Print the verdict, what was found beside it, and where the journals are."""
    outcome.verdict.table(console)
    restarts = sum(outcome.starts.values()) - len(outcome.starts)
    console.print(f"{outcome.seconds:.0f} s in all; workers started again: {restarts}")
    for finding in outcome.findings[:FINDINGS_SHOWN]:
        console.print(f"FINDING {finding}", highlight=False, markup=False)
    if outcome.findings:
        console.print(f"findings: {len(outcome.findings)}", highlight=False)
    if outcome.directory is not None:
        console.print(f"journals and logs: {outcome.directory}", highlight=False, soft_wrap=True)


def report_of(options: Options, outcome: Outcome) -> Report:
    """The report ``chaos_<topology>``."""
    verdict, schedule = outcome.verdict, outcome.schedule
    injected = sum(row.injected for row in verdict.rows)
    figures = (
        figure("violations", len(verdict.violations), "", target=0, samples=verdict.requests),
        figure("findings beside the protocol", len(outcome.findings), "", target=0),
        figure("pause at take-over, p95", verdict.take_over_p95, "s", target=TAKE_OVER_P95_S),
        figure("full capacity after a fault, longest", verdict.recovery_longest, "s",
               target=RECOVERY_S, samples=injected),
    )  # fmt: skip
    workers = f"{options.workers} workers with the tone engine and a saboteur"
    if options.cosyvoice:
        workers += f", {options.cosyvoice} with CosyVoice 2 of random weights"
    command = f"python -m verify chaos --topology {options.topology} --seed {options.seed}"
    command += f" --seconds {options.schedule_s:g} --turns {options.turn_count}"
    command += f" --workers {options.workers} --sessions {options.sessions}"
    command += " --with-cosyvoice" if options.cosyvoice else ""
    command += f" --only {','.join(options.kinds)}" if options.kinds else ""
    return Report(
        bench=f"chaos_{options.topology}",
        title=f"{verdict.requests} requests, {injected} faults, {options.topology}",
        conditions=(
            f"{workers}; {options.sessions} sessions side by side",
            f"clients, recorder, servers and workers share this machine; again with: {command}",
            "a pause is what a listener misses who plays frame n when it is there, and 20 ms "
            "after the one before at the earliest",
            *verdict.notes,
        ),
        figures=figures,
        series={
            "rows": msgspec.to_builtins(verdict.rows),
            "ends": verdict.ends,
            "frames": verdict.frames,
            "violations": msgspec.to_builtins(verdict.violations[:FINDINGS_SHOWN]),
            "by_promise": verdict.by_promise,
            "findings": list(outcome.findings),
            "schedule": msgspec.to_builtins(schedule),
            "starts": outcome.starts,
        },
    )
