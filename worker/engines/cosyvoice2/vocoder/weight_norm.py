"""Folds weight normalisation: a checkpoint's magnitude and direction become one weight."""

from collections.abc import Mapping

import torch
from torch import Tensor

_SPELLINGS = (
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
    (".weight_g", ".weight_v"),
)
"""PyTorch's names of magnitude and direction: since 2.0, and before."""

_TRAINER_PREFIX = "generator."
"""The prefix of all names if the vocoder was saved together with its discriminator."""


def fold_weight_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace every pair by ``weight = g v / |v|`` (arXiv:1602.07868, equation 2).

    The norm runs over all dimensions but the first, as in upstream's layers, in float64; the weight
    has the dtype of ``v``. A leading ``generator.`` is removed; other tensors stay.

    Raises:
        KeyError: Half of a pair is missing.
    """
    names = {name.removeprefix(_TRAINER_PREFIX): tensor for name, tensor in state.items()}
    folded: dict[str, Tensor] = {}
    for name, tensor in names.items():
        for magnitude, direction in _SPELLINGS:
            if name.endswith(magnitude):
                stem = name.removesuffix(magnitude)
                folded[f"{stem}.weight"] = _fold(tensor, names[stem + direction])
                break
            if name.endswith(direction):
                if name.removesuffix(direction) + magnitude not in names:
                    raise KeyError(name.removesuffix(direction) + magnitude)
                break
        else:
            folded[name] = tensor
    return folded


def _fold(magnitude: Tensor, direction: Tensor) -> Tensor:
    if direction.device.type == "meta":
        return torch.empty_like(direction)
    v = direction.double()
    norm = v.square().sum(dim=tuple(range(1, v.ndim)), keepdim=True).sqrt()
    return (magnitude.double() * v / norm).to(direction.dtype)
