"""``voicefleet voices``: add, list, mix, remove."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

for package in ("onnx", "onnxruntime", "tokenizers", "safetensors", "soundfile"):
    pytest.importorskip(package, reason="needs the cosyvoice extra")

import soundfile

from tests.worker.engines.cosyvoice2.onnx_stubs import write_front
from tests.worker.engines.cosyvoice2.recordings import speechlike
from voicefleet.cli import main
from voicefleet.worker.engines.cosyvoice2.voices.files import load, voices_of
from voicefleet.worker.engines.cosyvoice2.voices.voice import path_of

MODEL = "cosyvoice2-en-base"
TEXT = "The words that are said."

Run = Callable[..., tuple[int, str, str]]


def write_pack(root: Path, name: str, family: str = "cosyvoice2") -> Path:
    folder = root / family / name
    folder.mkdir(parents=True)
    fields = {
        **{"family": family, "model_id": f"{family}-{name}", "version": "1"},
        **{"languages": ["en"], "native_rate": 24_000, "licence": "none"},
    }
    (folder / "metadata.yaml").write_text(yaml.safe_dump(fields))
    return folder


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    folder = write_pack(tmp_path, "en-base")
    write_front(folder)
    return folder


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "ref.wav"
    soundfile.write(path, speechlike(4, 44_100), 44_100)
    return path


@pytest.fixture
def run(pack: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*args: object) -> tuple[int, str, str]:
        # These packs have no model that could speak.
        gain = ["--no-gain"] if args[0] == "add" else []
        status = main(["voices", *map(str, args), *gain, "--dir", str(tmp_path)])
        output = capfd.readouterr()
        return status, output.out, output.err

    return run


def test_a_voice_is_added_listed_and_removed(run: Run, pack: Path, recording: Path) -> None:
    status, out, err = run("add", "anna", "--wav", recording, "--text", f" {TEXT} ")
    assert (status, err) == (0, "") and "added anna to cosyvoice2-en-base: 4.0 s" in out
    voice = voices_of(pack)["anna"]
    assert voice.prompt_text == TEXT
    assert voice.source_rate == 44_100 and voice.seconds == pytest.approx(4.0, abs=0.011)
    assert voice.gain is None and voice.created.endswith("+00:00")
    # 4.2 s are 105 tokens: the flow begins with whole blocks of 25, the language model with all.
    assert (len(voice.speech_tokens), len(voice.flow_tokens)) == (105, 100)
    assert np.array_equal(voice.flow_tokens, voice.speech_tokens[5:])

    status, out, _ = run("list")
    assert status == 0 and "anna" in out and "105 / 100" in out and "44100 Hz" in out
    status, out, _ = run("list", "--json")
    (listed,) = json.loads(out)
    assert status == 0 and (listed["voice"], listed["lm_tokens"]) == ("anna", 105)
    status, out, _ = run("remove", "anna")
    assert status == 0 and "removed anna" in out
    assert voices_of(pack) == {}
    status, out, _ = run("list")
    assert status == 0 and "anna" not in out


def test_the_same_recording_gives_the_same_voice(run: Run, pack: Path, recording: Path) -> None:
    for name in ("one", "two"):
        run("add", name, "--wav", recording, "--text", TEXT)
    one, two = voices_of(pack).values()
    assert np.array_equal(one.mel, two.mel) and np.array_equal(one.speaker, two.speaker)


def test_voices_are_mixed(run: Run, pack: Path, recording: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "b.flac", speechlike(5, 16_000, seed=7), 16_000)
    run("add", "a", "--wav", recording, "--text", TEXT)
    run("add", "b", "--wav", tmp_path / "b.flac", "--text", "Other words.")
    status, out, err = run("mix", "a", "b", "--weight", "0.75", "--name", "c")
    assert (status, err) == (0, "") and "25% a, 75% b" in out
    voices = voices_of(pack)
    assert voices["c"].prompt_text == "Other words."
    assert np.array_equal(voices["c"].mel, voices["b"].mel)
    assert not np.allclose(voices["c"].speaker, voices["b"].speaker)


def test_a_voice_is_replaced_only_by_force(run: Run, pack: Path, recording: Path) -> None:
    run("add", "anna", "--wav", recording, "--text", TEXT)
    status, _, err = run("add", "anna", "--wav", recording, "--text", "New.")
    assert status == 1 and "has a voice 'anna' already: --force replaces it" in err
    status, _, err = run("mix", "anna", "anna", "--name", "anna")
    assert status == 1 and "--force" in err
    assert load(path_of(pack, "anna")).prompt_text == TEXT
    status, _, _ = run("add", "anna", "--wav", recording, "--text", "New.", "--force")
    assert status == 0 and load(path_of(pack, "anna")).prompt_text == "New."


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("add", "../x", "--wav", "{wav}", "--text", "a"), "is no name for a voice"),
        (("add", "x", "--wav", "none.wav", "--text", "a"), "--wav: recording: there is no file"),
        (("add", "x", "--wav", "{short}", "--text", "a"), "--wav: recording: 1.0 s long"),
        (("add", "x", "--wav", "{silent}", "--text", "a"), "--wav: recording: it is silent"),
        (("add", "x", "--wav", "{text}", "--text", "a"), "is not audio"),
        (("add", "x", "--wav", "{wav}", "--text", " "), "--text: says nothing"),
        (("add", "x", "--wav", "{wav}", "--text", "a", "--model", "y"), "no voicepack 'y'"),
        (
            ("add", "x", "--wav", "{wav}", "--text", "a", "--model", "tone-test"),
            "tone-test does not speak in recorded voices; models that take voices: cosyvoice2-bare,"
            " cosyvoice2-en-base",
        ),
        (
            ("add", "x", "--wav", "{wav}", "--text", "a", "--model", "cosyvoice2-bare"),
            "run `voicefleet voicepacks fetch cosyvoice2-bare`",
        ),
        (("remove", "x"), "has no voice 'x'; its voices are: none"),
        (("remove", "../metadata"), "is no name for a voice"),
        (("mix", "x", "y", "--name", "z"), "has no voice 'x'"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    run: Run, tmp_path: Path, recording: Path, args: tuple[str, ...], message: str
) -> None:
    write_pack(tmp_path, "bare")
    write_pack(tmp_path, "test", family="tone")
    files = {name: tmp_path / f"{name}.wav" for name in ("short", "silent", "text")}
    soundfile.write(files["short"], speechlike(1, 16_000), 16_000)
    soundfile.write(files["silent"], np.zeros(64_000), 16_000)
    files["text"].write_text("no audio")
    status, out, err = run(*(arg.format(wav=recording, **files) for arg in args))
    assert (status, out) == (1, "")
    assert message in err and err.count("\n") == 1
    assert not list(tmp_path.glob("*/*/voices/*"))


def test_a_weight_outside_is_refused(run: Run, pack: Path, recording: Path) -> None:
    run("add", "a", "--wav", recording, "--text", TEXT)
    status, _, err = run("mix", "a", "a", "--name", "b", "--weight", "1.5")
    assert status == 1 and "weight is 1.5" in err


def test_a_broken_voice_is_listed_as_such(run: Run, pack: Path, recording: Path) -> None:
    run("add", "good", "--wav", recording, "--text", TEXT)
    path_of(pack, "bad").write_bytes(b"nonsense")
    status, out, _ = run("list")
    assert status == 1 and "good" in out
    assert "fail" in out and "bad.safetensors" in out


def test_a_voice_is_measured_where_the_model_can_speak(
    tiny_pack: Path,
    tmp_path: Path,
    recording: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The gain that is kept is the one that a worker would find, and a worker uses it."""
    pytest.importorskip("torch", reason="needs the cosyvoice extra (torch)")
    from tests.worker.engines.cosyvoice2.driving import Driver

    # Other tests run beside this one: more threads than cores stand in each other's way.
    monkeypatch.setenv("VOICEFLEET_ENGINE_COSYVOICE2_THREADS", "1")
    monkeypatch.setenv("VOICEFLEET_ENGINE_COSYVOICE2_SYNTHESIS_TIMEOUT_S", "60")
    folder = tmp_path / "packs" / "cosyvoice2" / "tiny"
    shutil.copytree(tiny_pack, folder)
    where = ("--model", "cosyvoice2-tiny", "--dir", str(tmp_path / "packs"))
    status = main(["voices", "add", "anna", "--wav", str(recording), "--text", TEXT, *where])
    assert status == 0, capfd.readouterr().err
    gain = voices_of(folder)["anna"].gain
    assert gain is not None
    assert 0.01 < gain < 100
    driver = Driver(folder, slots=1)
    assert driver.core.info.gains == {"anna": gain}
    assert np.any(driver.speak(1, "Hello there.", voice="anna"))
