"""Weights from disk: the published ``.pt`` files, or the safetensors copies made of them.

Tensors come out under the names that our modules have: without the trainer's prefixes, weight norm
folded, and without what serving does not use. They lie on the CPU and may be mapped from the file.
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
    r"llm\.model\.lm_head\.weight"  # predicts text, which nobody asks for
    r"|llm\.model\.model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"  # computed here
)
TRAINING: Final = frozenset({"epoch", "step"})
"""Numbers that upstream's trainer saves among the weights."""

REMEDY: Final = "`voicefleet voicepacks fetch` gets the published files"


def read(directory: Path, name: str, dtype: torch.dtype) -> tuple[Path, dict[str, Tensor]]:
    """The weights of ``name`` (``llm.pt``), from its safetensors copy where that is as good.

    A copy is as good where it is exact (float32) or holds the ``dtype`` that is asked for.

    Returns:
        The file that was read, and its tensors.

    Raises:
        CosyVoiceInitializationError: No file is there, it is damaged, or it is something else.
    """
    original, copy = directory / name, directory / layout.safetensors(name)
    if copy.is_file():
        said = read_header(copy)
        if original.is_file() and said.get("source_size", "") != str(original.stat().st_size):
            raise CosyVoiceInitializationError(
                f"{copy}: was not made from this {name}: convert it again, or remove the copy"
            )
        held = said.get("dtype", "float32")
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
    """A ``.pt`` file. It is read as tensors only: a pickle that needs code is refused.

    Raises:
        CosyVoiceInitializationError: It is damaged, needs code, or holds no tensors.
    """
    try:
        mapped = _is_archive(path)  # only files of the current format can be mapped
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise CosyVoiceInitializationError(
                f"{path}: would run code when it is read, and is refused: weights are tensors only"
            ) from None
        raise _damaged(path) from None
    except Exception:
        # Whatever its opcodes make of what they are given: there is no end of types.
        raise _damaged(path) from None
    return normalise(path, loaded)


def _is_archive(path: Path) -> bool:
    """Whether it is a file of the current format. Raises ``ValueError`` for one that is packed.

    PyTorch stores its records as they are: what is deflated may be a thousand times its size.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise ValueError("a record is compressed")
    return True


def normalise(path: Path, loaded: object) -> dict[str, Tensor]:
    """What a ``.pt`` file holds under the names that our modules have.

    Raises:
        CosyVoiceInitializationError: It is no mapping of names to tensors, or weight norm's parts
            do not fit together.
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
    """A safetensors copy, as ``voicepacks convert`` writes it.

    Raises:
        CosyVoiceInitializationError: It is damaged.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:  # pyright: ignore[reportUnknownVariableType]
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 # pyright: ignore
    except (SafetensorError, OSError, ValueError):
        raise _damaged(path) from None


def read_header(path: Path) -> dict[str, str]:
    """What a safetensors copy says of itself: ``source``, its ``source_size``, ``dtype``.

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
