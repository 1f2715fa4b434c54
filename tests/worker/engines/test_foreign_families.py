"""Engine families of other packages: installed by pip, found by entry point, never by path."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.harness import ROOT
from tests.harness.fleet import Orchestrator, worker_process

pytestmark = pytest.mark.anyio

EXAMPLE = ROOT / "examples" / "engine"
MODEL = "morse-international"

Install = Callable[[Path], None]


@pytest.fixture(scope="module")
def morse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip installed the example, from a wheel that it built."""
    folder = tmp_path_factory.mktemp("morse")
    source = shutil.copytree(EXAMPLE, folder / "source")
    alone = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "install", "-q", *alone]
    subprocess.run([*command, "--target", folder / "site", source], check=True)
    return folder / "site"


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a folder of installed packages on the path of the processes that the test starts."""

    def on_the_path(site: Path) -> None:
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*filter(None, sys.path), str(site)]))

    return on_the_path


def offer(site: Path, family: str, value: str) -> Path:
    """Write what an installed package consists of to whoever looks for entry points."""
    folder = site / f"{family}_package-1.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {family}-package\nVersion: 1\n")
    (folder / "entry_points.txt").write_text(f"[voicefleet.engines]\n{family} = {value}\n")
    return site


def voicefleet(*arguments: str) -> tuple[int, str]:
    """A command's exit status, and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "voicefleet", *arguments],
        env={k: v for k, v in os.environ.items() if not k.startswith("VOICEFLEET_")},
        check=False,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout


def refused(*settings: str) -> str:
    """Why a worker that sends Morse code does not start with these settings."""
    flags = [part for setting in settings for part in ("--set", setting)]
    status, said = voicefleet("worker", "--config", str(EXAMPLE / "morse.yaml"), *flags)
    assert status != 0
    return said


async def test_a_worker_speaks_with_an_engine_of_another_package(
    fleet: Orchestrator, redis_url: str, morse: Path, install: Install
) -> None:
    install(morse)
    fleet.model = MODEL
    settings = ("engine.morse.pitch_hz=440", "engine.morse.slots=3")
    config = str(EXAMPLE / "morse.yaml")
    async with worker_process(fleet, redis_url, "w1", *settings, config=config, ready_s=60):
        await fleet.add("s", "SOS.", sample_rate=48_000, lead_ms=60_000)
        heard = await fleet.hear("s")
        record = await fleet.worker("w1")
    assert heard.end.reason == "completed"
    assert record["slots_total"] == "3"
    spectrum = np.abs(np.fft.rfft(heard.samples))
    assert abs(np.argmax(spectrum) * 48_000 / len(heard.samples) - 440) < 5


def test_its_section_is_as_strict_as_any(morse: Path, install: Install) -> None:
    install(morse)
    assert "engine.morse.pich_hz: is unknown; nearest is engine.morse.pitch_hz" in refused(
        "engine.morse.pich_hz=440"
    )
    assert "engine.morse.wpm: '99' is not a number from 5" in refused("engine.morse.wpm=99")
    assert "engine.morse.effective_wpm: is more than wpm=10" in refused("engine.morse.wpm=10")


def test_its_check_is_among_ours(morse: Path, install: Install, tmp_path: Path) -> None:
    install(morse)
    packs = shutil.copytree(EXAMPLE / "voicepacks", tmp_path / "voicepacks")
    assert voicefleet("voicepacks", "check", "--dir", str(packs)) == (0, f"ok    {MODEL}\n")
    alphabet = packs / "morse" / "international" / "alphabet.json"
    signs = json.loads(alphabet.read_text())
    del signs["q"]
    alphabet.write_text(json.dumps(signs))
    status, said = voicefleet("voicepacks", "check", "--dir", str(packs))
    assert status == 1
    assert f"{MODEL}: {alphabet} has no signs for q" in said


def test_without_the_package_it_is_unknown() -> None:
    assert "engine.morse: is unknown" in refused()
    status, said = voicefleet("voicepacks", "check", "--dir", str(EXAMPLE / "voicepacks"))
    assert status == 1
    assert "no engine speaks 'morse-international'; engines speak cosyvoice2-*, piper-*" in said


HOSTED = """
import msgspec
from tests.harness import hosted_core
from voicefleet.worker.engines.family import EngineFamily, HostedSection

class BellConfig(HostedSection, frozen=True):
    ballast_mb: int = 0

def core(pack, config, emit):
    assert isinstance(config, BellConfig) and config.ballast_mb == 1
    return hosted_core.build(pack, msgspec.to_builtins(config), emit)

FAMILY = EngineFamily(name="bell", config=BellConfig, core=core, slots=lambda config: 5)
"""


async def test_a_core_of_another_package_runs_in_a_child(
    fleet: Orchestrator, redis_url: str, tmp_path: Path, install: Install
) -> None:
    site = offer(tmp_path / "site", "bell", "bell_family:FAMILY")
    (site / "bell_family.py").write_text(HOSTED)
    install(site)
    pack = tmp_path / "voicepacks" / "bell" / "test"
    pack.mkdir(parents=True)
    metadata = (ROOT / "voicepacks/tone/test/metadata.yaml").read_text()
    metadata = metadata.replace("family: tone", "family: bell").replace("tone-test", "bell-test")
    (pack / "metadata.yaml").write_text(metadata)
    fleet.model = "bell-test"
    settings = (
        *("worker.models=bell-test", "model_manager.default_model_id=bell-test"),
        *(f"model_manager.voicepacks_dir={pack.parents[1]}", "engine.bell.ballast_mb=1"),
    )
    async with worker_process(fleet, redis_url, "w1", *settings, ready_s=60):
        await fleet.add("s", "A bell.")
        assert (await fleet.hear("s")).end.reason == "completed"


@pytest.mark.parametrize(
    ("family", "code", "problem"),
    [
        ("bell", "import nothing_of_the_kind", "ModuleNotFoundError: No module named 'nothing"),
        ("bell", "FAMILY = 1", "TypeError: bell_family:FAMILY is no EngineFamily"),
        ("bell", HOSTED.replace('"bell"', '"gong"'), "ValueError: its descriptor calls it gong"),
        ("tone", HOSTED.replace('"bell"', '"tone"'), "voicefleet has a family of that name"),
        ("bell", HOSTED.replace("core=core, ", ""), "bell: needs either an engine or a core"),
        ("bell", HOSTED.replace("HostedSection, f", "msgspec.Struct, f"), "is no HostedSection"),
    ],
)  # fmt: skip
def test_a_family_that_is_broken_stops_only_those_who_need_it(
    family: str, code: str, problem: str, tmp_path: Path, install: Install
) -> None:
    site = offer(tmp_path, family, "bell_family:FAMILY")
    (site / "bell_family.py").write_text(code)
    install(site)
    script = """
from voicefleet.worker.config.loading import ConfigError, load
from voicefleet.worker.engines.registry import BROKEN, FAMILIES
load(environ={})
print(*FAMILIES)
print(*BROKEN.values())
try:
    load(environ={}, overrides=["engine.bell.slots=1"])
except ConfigError as error:
    print(error)
"""
    said = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert said.stdout.startswith("cosyvoice2 piper tone\n"), said.stderr
    assert f"the engine family {family} of {family}-package is broken: " in said.stdout
    assert problem in said.stdout
    if family == "bell":
        assert f"flag: engine.bell: the engine family bell of {family}-package" in said.stdout
