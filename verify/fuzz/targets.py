"""All targets by name, and the packages that each needs."""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple, cast

from verify.fuzz.target import Target

PIPER: Final = ("piper", "onnx", "onnxruntime")
TORCH: Final = ("torch", "safetensors")


class Place(NamedTuple):
    """Where a target is made: a function of a module here, given a scratch directory."""

    module: str
    needs: tuple[str, ...] = ()


TARGETS: Final[Mapping[str, Place]] = {
    # What an orchestrator writes.
    "request": Place("protocol"),
    "text_piece": Place("protocol"),
    "control": Place("protocol"),
    # What workers write, for clients and each other.
    "audio_entry": Place("protocol"),
    "worker_record": Place("protocol"),
    "model_record": Place("protocol"),
    "session_record": Place("protocol"),
    "lease": Place("protocol"),
    "trail": Place("protocol"),
    # What an operator writes.
    "voicepack": Place("settings"),
    "voicepack_tree": Place("settings"),
    "config_file": Place("settings"),
    "config_tree": Place("settings"),
    "environment": Place("settings"),
    "url": Place("settings"),
    # What a server or an engine's process sends.
    "resp": Place("connections"),
    "engine_bytes": Place("connections"),
    "engine_reports": Place("connections"),
    # Models of others.
    "piper_config": Place("piper", PIPER),
    "piper_graph": Place("piper", PIPER),
    "piper_bytes": Place("piper", PIPER),
    "hyper_yaml": Place("sizes"),
    "hyper_yaml_tree": Place("sizes"),
    "qwen_config": Place("sizes"),
    "recording": Place("recordings", ("soundfile",)),
    "tokenizer": Place("voices", ("tokenizers",)),
    "voice_file": Place("voices", ("safetensors",)),
    "weights_pt": Place("checkpoints", TORCH),
    "weights_pickle": Place("checkpoints", TORCH),
    "weights_safetensors": Place("checkpoints", TORCH),
    "speakers_pt": Place("checkpoints", TORCH),
}


def lacking(name: str) -> list[str]:
    """The packages a target needs that are not installed."""
    return [package for package in TARGETS[name].needs if find_spec(package) is None]


def build(name: str, scratch: Path) -> Target:
    """Make a target. What it writes goes below ``scratch``."""
    module = import_module(f"verify.fuzz.of_{TARGETS[name].module}")
    return cast(Callable[[Path], Target], getattr(module, name))(scratch)
