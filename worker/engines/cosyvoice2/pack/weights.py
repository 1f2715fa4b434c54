"""Reads weights: the published ``.pt`` files, or the safetensors copies made of them.

Tensors get the names of our modules: the trainer's prefixes are removed, weight norm is folded, and
tensors that serving does not use are left out. They are on the CPU, perhaps memory-mapped.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from voicefleet.schemas.fields import excerpt
from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.pack import layout
from voicefleet.worker.engines.cosyvoice2.tensors import is_plain
from voicefleet.worker.engines.cosyvoice2.vocoder.weight_norm import fold_weight_norm

UNUSED: Final = re.compile(
    r"llm\.model\.lm_head\.weight"  # predicts text
    r"|llm\.model\.model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"  # computed by Rotary
)
TRAINING: Final = frozenset({"epoch", "step"})
"""Numbers that upstream's trainer saves with the weights."""

REMEDY: Final = "`voicefleet voicepacks fetch` gets the published files"


def read(directory: Path, name: str, dtype: torch.dtype) -> tuple[Path, dict[str, Tensor]]:
    """Read the weights of ``name`` (``llm.pt``), preferably from its safetensors copy.

    A copy is used if it is exact (float32) or has the wanted ``dtype``.

    Returns:
        The file that was read, and its tensors.

    Raises:
        CosyVoiceInitializationError: There is no file, it is damaged, or is not a weight file.
    """
    original, copy = directory / name, directory / layout.safetensors(name)
    if copy.is_file():
        header = read_header(copy)
        if original.is_file() and header.get("source_size", "") != str(original.stat().st_size):
            raise CosyVoiceInitializationError(
                f"{copy}: was not made from this {name}: convert it again, or remove the copy"
            )
        held = header.get("dtype", "float32")
        if held in ("float32", str(dtype).removeprefix("torch.")):
            return copy, read_copy(copy)
        if not original.is_file():
            raise CosyVoiceInitializationError(
                f"{copy}: holds {held}, which cannot serve {dtype}: "
                f"load it as {held}, or convert the original again"
            )
    if not original.is_file():
        raise CosyVoiceInitializationError(f"there is no {original}: {REMEDY}")
    return original, read_original(original)


def read_original(path: Path) -> dict[str, Tensor]:
    """Read a ``.pt`` file, tensors only: a pickle that would run code is refused.

    Raises:
        CosyVoiceInitializationError: It is damaged, would run code, or holds no tensors.
    """
    try:
        mapped = _is_archive(path)  # only the current format can be memory-mapped
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise CosyVoiceInitializationError(
                f"{path}: would run code when it is read, and is refused: weights are tensors only"
            ) from None
        raise _damaged(path) from None
    except Exception:
        # A damaged pickle can raise any type of exception.
        raise _damaged(path) from None
    return normalise(path, loaded)


def _is_archive(path: Path) -> bool:
    """Whether it is a zip archive, PyTorch's current format.

    Raises:
        ValueError: A record is compressed. PyTorch never does that, and it may expand to a thousand
            times its size.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise ValueError("a record is compressed")
    return True


def normalise(path: Path, loaded: object) -> dict[str, Tensor]:
    """Rename the tensors of a ``.pt`` file to our modules' names, and fold weight norm.

    Raises:
        CosyVoiceInitializationError: It is not a mapping of names to plain tensors, or the parts of
            weight norm do not fit together.
    """
    if not isinstance(loaded, Mapping):
        raise CosyVoiceInitializationError(f"{path}: holds no mapping of names to tensors")
    state: dict[str, Tensor] = {}
    for key, value in loaded.items():  # pyright: ignore[reportUnknownVariableType]
        name = str(key).removeprefix("generator.")  # pyright: ignore[reportUnknownArgumentType]
        if isinstance(value, Tensor):
            if not is_plain(value):
                what = f"{excerpt(name)[1:-1]} is no plain tensor"
                raise CosyVoiceInitializationError(f"{path}: {what}")
            if not UNUSED.fullmatch(name):
                state[name] = value
        elif name not in TRAINING:
            raise CosyVoiceInitializationError(f"{path}: {excerpt(name)[1:-1]} is no tensor")
    try:
        return fold_weight_norm(state)
    except (KeyError, ValueError, RuntimeError) as error:
        raise CosyVoiceInitializationError(f"{path}: weight norm: {error}") from None


def read_copy(path: Path) -> dict[str, Tensor]:
    """Read a safetensors copy, as ``voicepacks convert`` writes it.

    Raises:
        CosyVoiceInitializationError: It is damaged.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:  # pyright: ignore[reportUnknownVariableType]
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 # pyright: ignore
    except (SafetensorError, OSError, ValueError):
        raise _damaged(path) from None


def read_header(path: Path) -> dict[str, str]:
    """Read a safetensors copy's metadata: ``source``, ``source_size``, ``dtype``.

    Raises:
        CosyVoiceInitializationError: It is damaged.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:  # pyright: ignore[reportUnknownVariableType]
            return dict(file.metadata() or {})  # pyright: ignore
    except (SafetensorError, OSError, ValueError):
        raise _damaged(path) from None


def _damaged(path: Path) -> CosyVoiceInitializationError:
    return CosyVoiceInitializationError(f"{path}: is damaged or cut short: {REMEDY}")
