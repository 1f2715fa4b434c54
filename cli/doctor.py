"""``doctor``: is everything in place, and if not, what to do."""

import sys
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from voicefleet.cli import checks
from voicefleet.cli.advice import advice
from voicefleet.cli.finding import Finding, Findings
from voicefleet.cli.permission_check import permissions
from voicefleet.cli.table import print_json
from voicefleet.cli.target import DEFAULT, Target
from voicefleet.producer.errors import ServerRefused, VoiceFleetError

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_OF_SERVER = (
    checks.server,
    checks.tracking,
    permissions,
    checks.clock,
    checks.memory,
    checks.persistence,
    checks.workers,
)
_OF_MACHINE = (checks.engines, checks.voicepacks)


async def doctor(
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    target: Target = DEFAULT,
) -> int:
    """Check server, permissions, clock, engine, voices and workers; exit status 1 if any fails."""
    found: list[Finding] = []

    async def collect(findings: Findings) -> None:
        async for finding in findings:
            found.append(finding)
            if not as_json:
                _show(finding)

    try:
        async with target.fleet() as fleet:
            for check in _OF_SERVER:
                await collect(_or_refused(check(fleet)))
    except VoiceFleetError as error:
        await collect(_one(Finding("fail", str(error), advice(error))))
    for check in _OF_MACHINE:
        await collect(check())
    if as_json:
        print_json([msgspec.structs.asdict(finding) for finding in found])
    return 1 if any(finding.grade == "fail" for finding in found) else 0


async def _or_refused(findings: Findings) -> Findings:
    """Turn the refusal of a check's commands into a warning."""
    try:
        async for finding in findings:
            yield finding
    except ServerRefused as error:
        yield Finding("warn", f"could not look: {error}", "the user lacks permissions")


async def _one(finding: Finding) -> Findings:
    yield finding


def _show(finding: Finding) -> None:
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(Text(f"{finding.grade:<5}", _STYLES[finding.grade]), finding.what, sep="")
    if finding.advice:
        console.print(f"     -> {finding.advice}")
    sys.stdout.flush()
