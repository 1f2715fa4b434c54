"""Safetensors copies of a checkpoint's weights, which load faster.

A copy is written beside its ``.pt`` file, with weight norm folded and without tensors that serving
does not use. Its metadata names its source. The vocoder's copy is always float32.
"""

import hashlib
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.pack import layout, weights

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def convert(directory: Path, dtype: torch.dtype) -> list[Path]:
    """Write copies of the three weight files in ``directory``, each atomically.

    Returns:
        The files written.

    Raises:
        CosyVoiceInitializationError: A file is missing or damaged, or overflows in ``dtype``.
        OSError: The directory is full or not writable.
    """
    return [_convert(directory / name, dtype) for name in layout.WEIGHTS]


def _convert(path: Path, dtype: torch.dtype) -> Path:
    if not path.is_file():
        raise CosyVoiceInitializationError(f"there is no {path}: {weights.REMEDY}")
    if path.name == layout.VOCODER:
        dtype = torch.float32
    state = {
        name: tensor.to(dtype).contiguous() for name, tensor in weights.read_original(path).items()
    }
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise CosyVoiceInitializationError(f"{path}: {name} holds NaN or infinity in {dtype}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    copy = path.with_name(layout.safetensors(path.name))
    partial = copy.with_name(f".{copy.name}.partial")
    metadata = {
        "format": "pt",
        "source": path.name,
        "source_size": str(path.stat().st_size),
        "sha256": digest,
        "dtype": str(dtype).removeprefix("torch."),
    }
    try:
        save_file(state, partial, metadata)
        partial.chmod(path.stat().st_mode & 0o777)  # the library writes for its owner alone
        partial.replace(copy)
    finally:
        partial.unlink(missing_ok=True)
    return copy
