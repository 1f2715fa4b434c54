"""What the engine's tests share: random packs, and one thread each."""

from contextlib import suppress
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of random weights in the official layout, small enough for a test."""
    pytest.importorskip("torch", reason="needs the cosyvoice extra (torch)")
    pytest.importorskip("onnx", reason="needs onnx, to write a pack's stand-ins")
    from voicefleet.worker.engines.cosyvoice2.hyperparameters import TINY
    from voicefleet.worker.engines.cosyvoice2.pack import random_pack

    directory = tmp_path_factory.mktemp("packs") / "cosyvoice2" / "tiny"
    random_pack.write(directory, TINY, 0, "cosyvoice2-tiny")
    return directory


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """A tiny model gains nothing from more. Some tests here need no torch."""
    with suppress(ImportError):
        import torch

        torch.set_num_threads(1)
