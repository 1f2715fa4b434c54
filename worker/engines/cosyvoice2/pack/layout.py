"""The files of a CosyVoice 2 checkpoint directory, named as they are published."""

from pathlib import Path
from typing import Final

HYPERPARAMETERS: Final = "cosyvoice2.yaml"
LANGUAGE_MODEL: Final = "llm.pt"
FLOW: Final = "flow.pt"
VOCODER: Final = "hift.pt"
SPEAKER_ENCODER: Final = "campplus.onnx"
SPEECH_TOKENIZER: Final = "speech_tokenizer_v2.onnx"
SPEAKERS: Final = "spk2info.pt"
QWEN: Final = "CosyVoice-BlankEN"
"""The folder of the text tokenizer and the language model's sizes."""

WEIGHTS: Final = (LANGUAGE_MODEL, FLOW, VOCODER)
NEEDED: Final = (
    HYPERPARAMETERS,
    SPEAKER_ENCODER,
    SPEECH_TOKENIZER,
    *(f"{QWEN}/{name}" for name in ("config.json", "vocab.json", "merges.txt")),
    f"{QWEN}/tokenizer_config.json",
)
"""The files that serving needs besides the weights."""


def safetensors(name: str) -> str:
    """The name of the copy that ``voicepacks convert`` makes of a ``.pt`` file."""
    return f"{name.removesuffix('.pt')}.safetensors"


def missing(directory: Path) -> list[str]:
    """The files that serving needs and ``directory`` lacks; weights may be in either form."""
    weights = [
        name
        for name in WEIGHTS
        if not ((directory / name).is_file() or (directory / safetensors(name)).is_file())
    ]
    return weights + [name for name in NEEDED if not (directory / name).is_file()]
