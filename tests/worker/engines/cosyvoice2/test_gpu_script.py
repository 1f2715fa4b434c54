"""``bench/gpu.sh`` without a GPU: its three calls run, and what is killed keeps what it has."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.harness import ROOT

torch = pytest.importorskip("torch", reason="needs the cosyvoice extra (torch)")
psutil = pytest.importorskip("psutil", reason="the benches need it")
pytest.importorskip("onnx", reason="needs onnx, to write a pack's stand-ins")

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(torch.cuda.is_available(), reason="would measure the GPU for minutes"),
]

SIZES = ("--seconds", "0.3", "--sessions", "1", "--texts", "1,1.2")
MOST_FILES = 8


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the first call, as on a machine that is bare."""
    return tmp_path_factory.mktemp("packs")


@contextmanager
def begun(call: str, out: Path, packs: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    command = ["bench/gpu.sh", call, "--out", str(out), "--packs", str(packs), *more, "--", *SIZES]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True) as process:
        try:
            yield process
        finally:
            for one in psutil.pids():
                # A part is in a group of its own, but in our session.
                with suppress(ProcessLookupError):
                    if os.getsid(one) == process.pid:
                        os.kill(one, signal.SIGKILL)


def read(out: Path, call: str) -> dict[str, Any]:
    return json.loads((out / f"{call}.json").read_bytes())


def files(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.is_file()]


def test_three_calls_bring_their_results_in_a_few_files(tmp_path: Path, packs: Path) -> None:
    for call in ("smoke", "engine", "fleet"):
        with begun(call, tmp_path, packs) as process:
            assert process.wait(600) == 0, call
    smoke, engine, fleet = (read(tmp_path, call) for call in ("smoke", "engine", "fleet"))
    for call in (smoke, engine, fleet):
        assert all(step["status"] == 0 for step in call["steps"]), call["steps"]
    machine, speak, nodes = (
        smoke["reports"][f"smoke_{part}"] for part in ("machine_tiny", "speak_tiny", "nodes_tiny")
    )
    assert machine["packages"]["torch"] == torch.__version__
    assert speak["spoken_1"]["audio_s"] > 0.5
    assert nodes["graphs"]["decode step, 1"]["launches"] > 50
    assert len(nodes["graphs"]) == 3
    assert {one["backend"] for one in nodes["attention"]}
    levels = engine["reports"]["engine_tiny_cpu_fp32"]["report"]["series"]
    assert levels["complete"]
    assert "closed" in {level["load"] for level in levels["levels"]}
    batching = engine["reports"]["engine_tiny_cpu_fp32_batching"]["report"]["series"]
    assert batching["batching"]["decode"]
    assert fleet["reports"]["gpu_tiny_cpu_fp32"]["report"]["series"]["worker_record"]
    assert len(files(tmp_path)) <= MOST_FILES
    with tarfile.open(tmp_path / "engine.tar.gz") as archive:
        assert [name for name in archive.getnames() if name.endswith(".log")]
    spread = tmp_path / "spread"
    command = [sys.executable, "-m", "bench.cosyvoice.summary", str(tmp_path), "--into", spread]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "gpu_tiny_cpu_fp32" in output
    assert (spread / "gpu_tiny_cpu_fp32.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_call_that_is_killed_keeps_the_parts_that_are_over(
    tmp_path: Path, packs: Path, number: signal.Signals
) -> None:
    with begun("smoke", tmp_path, packs) as process:
        while not (tmp_path / "running/smoke_speak_tiny.json").exists():
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.1)
        os.killpg(process.pid, number)
        assert process.wait(60) != 0
    found = read(tmp_path, "smoke")
    assert found["reports"]["smoke_machine_tiny"]["complete"]
    assert [step["name"] for step in found["steps"]] == ["machine"]
    assert len(files(tmp_path)) <= MOST_FILES
    # What the part that was killed had measured, too.
    running = [json.loads(path.read_bytes()) for path in tmp_path.glob("running/*.json")]
    partial = found["reports"].get("smoke_speak_tiny") or running[0]
    assert partial["complete"] is False


def test_what_does_not_fit_is_skipped_and_said(tmp_path: Path, packs: Path) -> None:
    with begun("engine", tmp_path, packs, "--limit", "10") as process:
        assert process.wait(120) == 0
    found = read(tmp_path, "engine")
    assert found["steps"] == []
    assert "tiny: no time left" in found["skipped"]
