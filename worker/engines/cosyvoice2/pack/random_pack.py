"""Writes voicepacks of random weights in the published layout. Their output is not speech.

They serve to test and measure the engine without the published weights. Upstream's loader can read
them.
"""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import yaml
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

from voicefleet.worker.engines.cosyvoice2.hyperparameters import TINY, Hyperparameters
from voicefleet.worker.engines.cosyvoice2.pack import (
    checkpoint,
    layout,
    published_yaml,
    random_weights,
    stubs,
)
from voicefleet.worker.engines.cosyvoice2.voices import files as voice_files
from voicefleet.worker.engines.cosyvoice2.voices import voice

MODELS: Final = {"cosyvoice2-tiny": TINY, "cosyvoice2-full": Hyperparameters()}
"""The packs that can be written, by model id."""

SPEAKER: Final = "default"
"""The only speaker in ``spk2info.pt``."""

VOICE: Final = "random"
"""The ready voice, with a prompt of ``PROMPT_S`` seconds."""

PROMPT_S: Final = 3


def write(directory: Path, hyperparameters: Hyperparameters, seed: int, name: str) -> Path:
    """Write a pack called ``name`` to ``directory``, atomically.

    Equal arguments give equal tensors on every machine. The full size takes half a minute and, like
    the published checkpoint, 3.6 GB of disk.

    Raises:
        FileExistsError: ``directory`` is not empty.
    """
    if directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty")
    new = [folder for folder in directory.parents if not folder.exists()]
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        _write(partial, hyperparameters, seed, name)
        for path in (
            partial,
            *partial.rglob("*"),
        ):  # temporary files are readable by their owner only
            path.chmod(0o755 if path.is_dir() else 0o644)
        if directory.exists():
            directory.rmdir()
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # another pack may have been written there
            for folder in new:
                folder.rmdir()
        raise
    return directory


def _write(directory: Path, sizes: Hyperparameters, seed: int, name: str) -> None:
    (directory / layout.HYPERPARAMETERS).write_text(published_yaml.model_yaml(sizes))
    stubs.write_speaker_encoder(directory / layout.SPEAKER_ENCODER, seed)
    stubs.write_speech_tokenizer(directory / layout.SPEECH_TOKENIZER, seed)
    qwen = directory / layout.QWEN
    stubs.write_text_tokenizer(qwen)
    (qwen / "config.json").write_bytes(published_yaml.qwen_config(sizes))
    for file, state in random_weights.draw(sizes, seed).items():
        torch.save(state, directory / file)
        if file == layout.LANGUAGE_MODEL:
            _write_qwen(qwen / "model.safetensors", state)
    speaker = torch.randn(
        1, sizes.flow.speaker_width, generator=random_weights.generator(seed, "speaker")
    )
    torch.save({SPEAKER: {"embedding": speaker}}, directory / layout.SPEAKERS)
    voice_files.save(_voice(sizes, seed), voice.path_of(directory, VOICE))
    metadata = yaml.safe_dump(_metadata(sizes, name), sort_keys=False, width=100)
    (directory / "metadata.yaml").write_text(metadata)


def _write_qwen(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Write the transformer alone, which upstream loads before ``llm.pt``."""
    prefix = "llm.model."
    body = {
        name.removeprefix(prefix): tensor.bfloat16()
        for name, tensor in state.items()
        if name.startswith(prefix) and name != random_weights.LM_HEAD
    }
    save_file(body, path, {"format": "pt"})


def _voice(sizes: Hyperparameters, seed: int) -> voice.Voice:
    rng = np.random.Generator(np.random.PCG64(seed))
    tokens = rng.integers(0, sizes.flow.vocabulary, PROMPT_S * sizes.token_rate)
    frames = sizes.flow.frames_per_token * len(tokens)
    return voice.Voice(
        name=VOICE,
        speaker=rng.standard_normal(sizes.flow.speaker_width).astype(np.float32),
        prompt_text="This prompt says as little as its sound.",
        speech_tokens=tokens,
        flow_tokens=tokens,
        # About the mean and spread of log-mel frames of speech.
        mel=(rng.standard_normal((frames, sizes.flow.mel_bands)) * 2 - 6).astype(np.float32),
        created="2026-01-01T00:00:00Z",
        source_rate=sizes.sample_rate,
        seconds=float(PROMPT_S),
    )


def _metadata(sizes: Hyperparameters, name: str) -> dict[str, Any]:
    return {
        "family": "cosyvoice2",
        "model_id": name,
        "version": "random",
        "description": "Random weights in the layout of CosyVoice2-0.5B. Noise, for tests.",
        "capabilities": ["streaming", "cloning", "instruct", "text-streaming"],
        "modes": ["zero_shot", "cross_lingual", "instruct", "sft"],
        "languages": ["und"],
        "tags": ["synthetic", "random-weights"],
        "synthetic": True,
        "native_rate": sizes.sample_rate,
        "memory_mb": _memory_mb(sizes),
        "default_voice": VOICE,
        "licence": "none needed (random numbers)",
    }


def _memory_mb(sizes: Hyperparameters) -> int:
    """Megabytes of the weights in 16 bit, without the text head."""
    model = checkpoint.skeleton(sizes)
    return sum(2 * p.numel() for part in model for p in part.parameters()) // 1_000_000
