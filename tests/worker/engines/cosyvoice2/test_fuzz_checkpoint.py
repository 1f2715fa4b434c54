"""Checkpoints of strangers: nothing in them runs, and none takes more memory than it is long."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import pytest

torch = pytest.importorskip("torch", reason="the engine needs the cosyvoice extra: torch")
pytest.importorskip("safetensors", reason="needs the cosyvoice extra")

from verify.fuzz.campaign import GROWTH_MB, hunt
from verify.fuzz.targets import TARGETS, TORCH
from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.pack import weights
from voicefleet.worker.engines.cosyvoice2.voices.files import sft_speakers
from voicefleet.worker.engines.cosyvoice2.voices.voice import VoiceError

SEED = int(os.environ.get("VOICEFLEET_TEST_FUZZ_SEED", "1"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [name for name in TARGETS if TARGETS[name].needs == TORCH])
def test_nothing_breaks(name: str) -> None:
    report = hunt(name, seed=SEED, count=100)
    assert report.finds == []
    assert report.growth_mb <= GROWTH_MB


NOT_PLAIN: dict[str, Callable[[], Any]] = {
    "repeats its storage": lambda: torch.zeros(1).expand(2**34, 2**20),
    "sparse": lambda: torch.zeros(3, 4).to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
    "nowhere": lambda: torch.zeros(3, device="meta"),
}


@pytest.mark.parametrize("kind", NOT_PLAIN)
@pytest.mark.parametrize("name", ["linear.weight", "conv.weight_g"])
def test_a_tensor_that_is_not_plain(kind: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "llm.pt"
    torch.save({name: NOT_PLAIN[kind](), "conv.weight_v": torch.zeros(3, 2, 3)}, path)
    with pytest.raises(CosyVoiceInitializationError, match=f"{name} is no plain tensor"):
        weights.read_original(path)


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_a_speaker_that_is_not_plain(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "spk2info.pt"
    torch.save({"anna": {"embedding": NOT_PLAIN[kind]()}}, path)
    with pytest.raises(VoiceError, match="embedding is no plain tensor"):
        sft_speakers(path)


def test_an_archive_that_is_packed(tmp_path: Path) -> None:
    """PyTorch does not pack its records: one that is packed may be a thousand times its size."""
    saved, packed = tmp_path / "saved.pt", tmp_path / "llm.pt"
    torch.save({"a": torch.zeros(2**20)}, saved)
    with ZipFile(saved) as old, ZipFile(packed, "w", ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert packed.stat().st_size < saved.stat().st_size / 100
    with pytest.raises(CosyVoiceInitializationError, match="is damaged"):
        weights.read_original(packed)
