"""Safetensors copies of a checkpoint's weights, which load faster.

A copy lies beside its ``.pt`` file, has weight norm folded and what serving does not use left out,
and says in its metadata what it was made of. The vocoder's is always float32.
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
    """Write the copies of ``directory``'s three files, each whole or not at all.

    Returns:
        The files that were written.

    Raises:
        CosyVoiceInitializationError: A file is missing, damaged, or does not fit into ``dtype``.
        OSError: There is no room, or no right to write there.
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
    said = {
        "format": "pt",
        "source": path.name,
        "source_size": str(path.stat().st_size),
        "sha256": digest,
        "dtype": str(dtype).removeprefix("torch."),
    }
    try:
        save_file(state, partial, said)
        partial.chmod(path.stat().st_mode & 0o777)  # the library writes for its owner alone
        partial.replace(copy)
    finally:
        partial.unlink(missing_ok=True)
    return copy
