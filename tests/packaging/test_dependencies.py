"""Which package may import which: the contracts of pyproject.toml, kept by the code as it is."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT

pytest.importorskip("importlinter")

LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"
PACKAGES = ("src", "cli", "producer", "schemas", "wire", "worker", "bench", "verify", "tests")


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache"],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": f"{tree / 'src'}{os.pathsep}{tree}", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_package_imports_what_it_may() -> None:
    linted = lint(ROOT)
    assert linted.returncode == 0, linted.stdout


def test_every_rule_is_found_broken_where_it_is(tmp_path: Path) -> None:
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / package, tmp_path / package, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    breaks = {
        "bench/report.py": "import verify.chaos.run",
        "producer/client.py": "import voicefleet.worker.logs",
        "producer/wav.py": "import numpy",
        "schemas/fields.py": "import voicefleet.schemas.keys",
        "worker/engines/tone/engine.py": "import voicefleet.worker.publish.outbox",
        "worker/engines/protocol.py": "import voicefleet.worker.engines.tone.engine",
        "tests/harness/tls.py": "import bench.report",
        "worker/store/clock.py": "import voicefleet.worker.engines.piper.engine",
    }
    for path, line in breaks.items():
        with (tmp_path / path).open("a") as file:
            file.write(f"\n{line}\n")
    linted = lint(tmp_path)
    assert linted.returncode == 1
    assert "Contracts: 0 kept" in linted.stdout, linted.stdout
