"""Checks tensors of untrusted files before anything is computed with them."""

import torch
from torch import Tensor


def is_plain(tensor: object) -> bool:
    """Whether ``tensor`` is a dense CPU tensor that stores each of its values.

    An expanded view stores one value on disk, and takes its full size in memory as soon as anything
    is computed with it.
    """
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
        return False
    if tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
