"""Packs of random weights: in the published layout, sane, marked, and readable by upstream."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the engine needs the cosyvoice extra: torch")
pytest.importorskip("onnx", reason="stand-ins are written with onnx")
ort = pytest.importorskip("onnxruntime", reason="the engine needs the cosyvoice extra")

import numpy as np

from tests.harness.fleet import ROOT
from voicefleet.cli import main
from voicefleet.installation import install
from voicefleet.worker.engines import registry
from voicefleet.worker.engines.cosyvoice2.hyperparameters import TINY
from voicefleet.worker.engines.cosyvoice2.pack import checkpoint, layout, model_yaml, random_pack
from voicefleet.worker.engines.cosyvoice2.text.tokenizer import TextTokenizer
from voicefleet.worker.engines.cosyvoice2.voices import files as voice_files
from voicefleet.worker.voicepacks import voicepack


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs") / "cosyvoice2" / "tiny"
    return random_pack.write(folder, TINY, seed=0, name="cosyvoice2-tiny")


def load(pack: Path) -> checkpoint.Model:
    sizes = model_yaml.read(pack / layout.HYPERPARAMETERS)
    assert sizes == TINY
    return checkpoint.load(pack, sizes, torch.float32, torch.device("cpu"))


def test_it_is_a_voicepack_and_says_what_it_is(pack: Path) -> None:
    found = voicepack.discover(pack.parents[1])["cosyvoice2-tiny"]
    assert registry.check(found) == []
    assert found.synthetic and "random-weights" in found.tags
    assert "random" in found.licence and "Random weights" in found.description
    assert found.memory_mb > 10


def test_all_files_are_everyones_to_read(pack: Path) -> None:
    assert {path.stat().st_mode & 0o777 for path in pack.rglob("*") if path.is_file()} == {0o644}


def test_check_names_what_is_missing_or_wrong(pack: Path, tmp_path: Path) -> None:
    folder = random_pack.write(tmp_path / "cosyvoice2/x", TINY, 0, "cosyvoice2-x")
    (folder / "hift.pt").unlink()
    (folder / "CosyVoice-BlankEN/merges.txt").unlink()
    yaml = folder / "cosyvoice2.yaml"
    yaml.write_text(yaml.read_text().replace("euler", "heun"))
    findings = registry.check(voicepack.read(folder))
    assert [finding.rsplit("/", 1)[-1].split(" ")[0] for finding in findings] == [
        "hift.pt",
        "merges.txt",
        "cosyvoice2.yaml:",
    ]
    yaml.unlink()
    assert len(registry.check(voicepack.read(folder))) == 3


def test_equal_seeds_give_equal_packs(pack: Path, tmp_path: Path) -> None:
    again = random_pack.write(tmp_path / "cosyvoice2/a", TINY, 0, "cosyvoice2-a")
    other = random_pack.write(tmp_path / "cosyvoice2/b", TINY, 1, "cosyvoice2-b")
    for name in (*layout.WEIGHTS, layout.SPEAKERS):
        mine, same, differs = (
            torch.load(folder / name, weights_only=True) for folder in (pack, again, other)
        )
        if name == layout.SPEAKERS:
            mine, same, differs = mine["default"], same["default"], differs["default"]
        assert all(torch.equal(mine[key], same[key]) for key in mine)
        assert not all(torch.equal(mine[key], differs[key]) for key in mine)
    one, two = voice_files.voices_of(pack)["random"], voice_files.voices_of(again)["random"]
    assert np.array_equal(one.mel, two.mel)


def test_activations_are_sane(pack: Path) -> None:
    """Frames, pitch and samples of a random voice are such as a real one's could be."""
    model, voice = load(pack), voice_files.voices_of(pack)["random"]
    assert len(voice.flow_tokens) == random_pack.PROMPT_S * TINY.token_rate
    source = torch.Generator().manual_seed(0)
    spoken = torch.randint(TINY.flow.vocabulary, (50,), generator=source)
    tokens = torch.cat([torch.from_numpy(voice.flow_tokens), spoken])[None]
    frames = model.flow.render(
        tokens,
        torch.tensor([tokens.shape[1]]),
        torch.from_numpy(voice.mel)[None],
        torch.from_numpy(voice.speaker)[None],
        streaming=True,
        final=True,
    )[:, -100:]
    assert 0.3 < frames.std() < 5 and frames.abs().max() < 30
    with torch.inference_mode():
        mel = frames.transpose(1, 2).contiguous()
        f0 = model.vocoder.f0_predictor(mel)
        noise = torch.randn(1, 100 * TINY.vocoder.hop, 9, generator=source)
        samples = model.vocoder.waveform(mel, noise)
    assert 100 < f0.mean() < 200 and f0.std() > 0.1
    assert 0.01 < samples.square().mean().sqrt() < 0.5
    assert (samples.abs() > 0.98).float().mean() < 0.01


def test_utterances_end(pack: Path) -> None:
    """The end is a fair part of the nucleus that is sampled from, and not all of it."""
    sizes, model = TINY.language_model, load(pack).language_model
    states = torch.randn(200, sizes.width, generator=torch.Generator().manual_seed(0))
    logits = model.llm_decoder(states / states.square().mean(1, keepdim=True).sqrt())
    best = logits.topk(sizes.sampling.top_k).values
    end = logits[:, sizes.end_token].exp() / best.exp().sum(1)
    assert 0.01 < end.mean() < 0.4


def test_the_parts_that_are_not_weights(pack: Path) -> None:
    assert TextTokenizer(pack / layout.QWEN).size <= TINY.language_model.vocabulary
    assert voice_files.sft_speakers(pack / layout.SPEAKERS).keys() == {"default"}
    encoder = ort.InferenceSession(pack / layout.SPEAKER_ENCODER)
    (embedding,) = encoder.run(None, {"input": np.ones((1, 50, 80), np.float32)})
    assert embedding.shape == (1, TINY.flow.speaker_width)
    tokenizer = ort.InferenceSession(pack / layout.SPEECH_TOKENIZER)
    feats = np.random.default_rng(0).standard_normal((1, 128, 100), np.float32)
    length = np.array([100], np.int32)
    (tokens,) = tokenizer.run(None, {"feats": feats, "feats_length": length})
    assert tokens.shape == (1, 25) and tokens.max() < TINY.flow.vocabulary


def test_upstreams_own_loader_reads_it(pack: Path) -> None:
    """As ``CosyVoice2.__init__`` and ``CosyVoice2Model.load`` do, strictly."""
    pytest.importorskip("cosyvoice", reason="the parity oracle: --group parity")
    hyperpyyaml = pytest.importorskip("hyperpyyaml", reason="the parity oracle: --group parity")
    from tests.worker.engines.cosyvoice2 import oracle

    oracle.import_upstream()
    # What computes a prompt's mel there needs librosa; the model does without.
    text = (pack / layout.HYPERPARAMETERS).read_text().split("feat_extractor:")[0]
    # Its tokenizer's module needs whisper.
    text = text.split("get_tokenizer:")[0]
    overrides = {"qwen_pretrain_path": str(pack / layout.QWEN)}
    made = hyperpyyaml.load_hyperpyyaml(text, overrides=overrides)
    for key, file in (("llm", "llm.pt"), ("flow", "flow.pt"), ("hift", "hift.pt")):
        state = torch.load(pack / file, map_location="cpu", weights_only=True)
        made[key].load_state_dict(state, strict=True)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(pack / layout.QWEN)
    sentence = "The 2 quick brown foxes, déjà vu — 你好!"
    assert theirs(sentence)["input_ids"] == TextTokenizer(pack / layout.QWEN).encode(sentence)


def test_nothing_is_overwritten(pack: Path) -> None:
    with pytest.raises(FileExistsError, match="not empty"):
        random_pack.write(pack, TINY, 1, "cosyvoice2-tiny")


def test_a_failed_pack_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(random_pack.random_weights, "draw", fail)
    with pytest.raises(OSError, match="no space left"):
        random_pack.write(tmp_path / "packs/cosyvoice2/x", TINY, 0, "cosyvoice2-x")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("option", ["--dir", "--out"])  # the latter is what it was called once
def test_without_onnx_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    pack = "voicefleet.worker.engines.cosyvoice2.pack"
    for module in ("random_pack", "stubs"):
        monkeypatch.delitem(sys.modules, f"{pack}.{module}", raising=False)
        monkeypatch.delattr(sys.modules[pack], module, raising=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
    packs = tmp_path / "packs"
    assert main(["voicepacks", "random", "cosyvoice2-tiny", option, str(packs)]) == 1
    output = capsys.readouterr().err
    assert install("cosyvoice") in output and "onnx" in output
    assert not packs.exists()


def test_the_extra_brings_what_the_engine_imports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = [*project["dependencies"], *extras["worker"], *extras["cosyvoice"]]
    brought = {re.split(r"[^\w-]", requirement)[0].lower() for requirement in required}
    distributions = packages_distributions()
    for path in (ROOT / "worker/engines/cosyvoice2").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                top = (name or "").partition(".")[0]
                if top in sys.stdlib_module_names or top in ("voicefleet", "wetext"):
                    continue  # wetext: an option, which says itself that it is missing
                offered = {found.lower() for found in distributions.get(top, [top])}
                assert offered & brought, f"{path} imports {top}, which no requirement brings"


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packs = str(tmp_path)
    make = ["voicepacks", "random", "cosyvoice2-tiny", "--dir", packs]
    assert main(make) == 0
    assert "random weights" in capsys.readouterr().out
    assert main(make) == 1
    assert "is not empty: remove it first" in capsys.readouterr().err
    assert main(["voicepacks", "check", "--dir", packs]) == 0
    assert "ok    cosyvoice2-tiny" in capsys.readouterr().out
    convert = ["voicepacks", "convert", "cosyvoice2-tiny", "--dir", packs]
    assert main([*convert, "--dtype", "bf16"]) == 0
    assert "llm.safetensors" in capsys.readouterr().out
    folder = tmp_path / "cosyvoice2/tiny"
    assert (folder / "flow.safetensors").stat().st_mode & 0o777 == 0o644
    for name in layout.WEIGHTS:
        (folder / name).unlink()
    assert main(["voicepacks", "check", "--dir", packs]) == 0
    assert main(["voicepacks", "list", "--dir", packs]) == 0
    assert "cosyvoice2-tiny (synthetic)" in capsys.readouterr().out
