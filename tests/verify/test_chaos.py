"""Short chaos runs: real workers and servers under faults, and the checker.

``VOICEFLEET_CHAOS_SEED`` gives them another seed; a failure prints the one it had.
"""

import os
from pathlib import Path

import pytest

from verify.chaos import run as chaos

pytestmark = [pytest.mark.anyio, pytest.mark.long, pytest.mark.alone, pytest.mark.timeout(400)]

SEED = int(os.environ.get("VOICEFLEET_CHAOS_SEED", "4"))

EDITIONS = {
    "standalone": chaos.Options(
        seconds=60,
        sessions=12,
        workers=3,
        kinds=(
            "worker_kill",
            "worker_drain",
            "client_kill",
            "script_flush",
            "server_kill",
            "net_partition",
            "control_flood",
        ),
    ),
    "sentinel": chaos.Options(
        topology="sentinel", seconds=20, sessions=8, workers=2, kinds=("primary_kill", "lost_tail")
    ),
    "cluster": chaos.Options(
        topology="cluster", seconds=20, sessions=8, workers=2, kinds=("lost_tail", "slot_migration")
    ),
}


async def survives(options: chaos.Options, tmp_path: Path) -> None:
    outcome = await chaos.run(
        chaos.msgspec.structs.replace(options, seed=SEED, runs=tmp_path, keep=True)
    )
    print(f"seed {SEED}:", outcome.verdict.by_promise, *outcome.verdict.violations[:20], sep="\n")
    assert not outcome.verdict.violations
    assert not outcome.findings
    injected = [row for row in outcome.verdict.rows if row.injected]
    assert injected, "there were faults to survive"
    assert outcome.verdict.ends.get("completed", 0) > options.sessions


@pytest.mark.parametrize("edition", EDITIONS)
async def test_chaos_is_survived(edition: str, tmp_path: Path) -> None:
    await survives(EDITIONS[edition], tmp_path)
