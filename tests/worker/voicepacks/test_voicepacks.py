"""Voicepacks: what is read, what is refused, and what is found missing."""

from pathlib import Path

import pytest
import yaml

from tests.harness import ROOT
from voicefleet.worker.engines import registry
from voicefleet.worker.voicepacks import voicepack
from voicefleet.worker.voicepacks.voicepack import VoicepackError

SHIPPED = ROOT / "voicepacks"


def write(root: Path, folder: str = "piper/x", **changes: object) -> Path:
    fields: dict[str, object] = {
        "family": "piper",
        "model_id": "piper-x",
        "version": "1",
        "languages": ["en"],
        "native_rate": 22050,
        "licence": "MIT",
        "source": {"files": {"model": "x.onnx", "config": "x.onnx.json"}},
    }
    fields |= changes
    path = root / folder
    path.mkdir(parents=True)
    present = {key: value for key, value in fields.items() if value is not None}
    (path / "metadata.yaml").write_text(yaml.safe_dump(present))
    return path


def test_shipped_packs_are_sound() -> None:
    packs = voicepack.discover(SHIPPED)
    assert {"tone-test", "piper-en-joe"} <= packs.keys()
    assert registry.check(packs["tone-test"]) == []


def test_a_pack_that_is_not_fetched_is_listed() -> None:
    pack = voicepack.discover(SHIPPED)["cosyvoice2-en-base"]
    assert not pack.synthetic and pack.native_rate == 24000 and pack.licence == "Apache-2.0"
    assert pack.targets is not None and pack.targets.first_audio_ms == 150
    if not voicepack.is_fetched(pack):
        assert registry.check(pack) == [
            "cosyvoice2-en-base: not fetched: run `voicefleet voicepacks fetch cosyvoice2-en-base`"
        ]


def test_a_pack_that_is_fetched_in_part(tmp_path: Path) -> None:
    hub = {"modelscope": "a/b", "files": {"llm.pt": {}, "flow.pt": {}}}
    changes = {"family": "cosyvoice2", "model_id": "cosyvoice2-x", "source": {"hub": hub}}
    folder = write(tmp_path, "cosyvoice2/x", **changes)
    (folder / "llm.pt").touch()
    pack = voicepack.read(folder)
    assert voicepack.is_fetched(pack)
    findings = registry.check(pack)
    assert f"there is no {folder / 'flow.pt'}" in findings
    assert f"there is no {folder / 'cosyvoice2.yaml'}" in findings
    assert f"there is no {folder / 'llm.pt'}" not in findings


def test_a_valid_pack_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "x.onnx").touch()
    (folder / "x.onnx.json").write_text('{"audio": {"sample_rate": 22050}}')
    pack = voicepack.discover(tmp_path)["piper-x"]
    assert pack.directory == folder
    assert pack.file("model") == folder / "x.onnx"
    assert registry.check(pack) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nativ_rate": 1}, "unknown key 'nativ_rate': did you mean 'native_rate'?"),
        ({"zzzz": 1}, "unknown key 'zzzz': it is one of family, model_id"),
        ({"source": {"file": {}}}, "unknown key 'source.file': did you mean 'files'?"),
        ({"licence": None}, "missing required field `licence`"),
        ({"native_rate": "fast"}, "native_rate"),
        ({"native_rate": 10}, "native_rate"),
        ({"model_id": "tone-x"}, "must begin with its family, 'piper-'"),
        ({"model_id": "piper-X y"}, "model_id"),
        ({"family": "tone", "model_id": "tone-x"}, "in the folder of family 'piper'"),
        ({"voices": ["a"], "default_voice": "b"}, "default_voice 'b' is not one of a"),
        ({"source": {"files": {"model": "../../etc/passwd"}}}, "not a relative path inside"),
        ({"source": {"files": {"model": "/etc/passwd"}}}, "not a relative path inside"),
        ({"prompts": {"a": {"audio": "../a.wav"}}}, "prompts.a"),
        ({"calibration_text": "short"}, "calibration_text"),
        ({"synthetic": "perhaps"}, "synthetic"),
        ({"targets": {"rtf": 0}}, "targets.rtf"),
        ({"targets": {"speed": 1}}, "speed"),
        (
            {"source": {"hub": {"hugingface": "a/b", "files": {"x": {}}}}},
            "unknown key 'source.hub.hugingface': did you mean 'huggingface'?",
        ),
        ({"source": {"hub": {"files": {"x": {}}}}}, "names no repository"),
        ({"source": {"hub": {"modelscope": "a/b", "files": {}}}}, "files"),
        ({"source": {"hub": {"modelscope": "a/b/c", "files": {"x": {}}}}}, "modelscope"),
        (
            {"source": {"hub": {"modelscope": "a/b", "files": {"x": {"sha256": "00"}}}}},
            "sha256",
        ),
        (
            {"source": {"hub": {"modelscope": "a/b", "files": {"../x": {}}}}},
            "source.hub.files.../x: '../x' is not a relative path inside",
        ),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    folder = write(tmp_path, **changes)
    with pytest.raises(VoicepackError) as caught:
        voicepack.discover(tmp_path)
    assert message in str(caught.value)
    assert str(folder / "metadata.yaml") in str(caught.value)


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [\n", "", "\xff\xfe"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    folder = write(tmp_path)
    (folder / "metadata.yaml").write_text(content, encoding="latin-1")
    with pytest.raises(VoicepackError, match=r"metadata\.yaml"):
        voicepack.discover(tmp_path)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    write(tmp_path, "piper/a", licence=None)
    write(tmp_path, "piper/b")
    write(tmp_path, "piper/c")
    with pytest.raises(VoicepackError) as caught:
        voicepack.discover(tmp_path)
    first, second = str(caught.value).splitlines()
    assert "licence" in first
    assert "'piper-x' is taken by" in second


def test_check_finds_what_is_missing(tmp_path: Path) -> None:
    folder = write(tmp_path, prompts={"anna": {"audio": "anna.wav"}})
    (folder / "x.onnx").touch()
    findings = registry.check(voicepack.read(folder))
    assert len(findings) == 2
    assert "x.onnx.json" in findings[0]
    assert "'anna'" in findings[1]


def test_check_finds_another_rate(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "x.onnx").touch()
    (folder / "x.onnx.json").write_text('{"audio": {"sample_rate": 16000}}')
    (finding,) = registry.check(voicepack.read(folder))
    assert "22050 Hz" in finding
    assert "16000 Hz" in finding


def test_a_missing_package_is_named_with_its_remedy(tmp_path: Path) -> None:
    source = {"package": "no-such-voice-package", "files": {"model": "x.onnx"}}
    pack = voicepack.read(write(tmp_path, source=source))
    (finding,) = registry.check(pack)
    assert "pip install no-such-voice-package" in finding
    with pytest.raises(VoicepackError, match="names no 'config'"):
        pack.file("config")


def test_the_folder_is_looked_for_upwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "voicepacks")
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert voicepack.default_directory() == tmp_path / "voicepacks"
    assert voicepack.default_directory("/elsewhere") == Path("/elsewhere")


def test_without_a_folder_the_shipped_packs_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "tone-test" in voicepack.discover(voicepack.default_directory())
    with pytest.raises(VoicepackError, match="there is no voicepacks folder"):
        voicepack.discover(tmp_path / "none")
