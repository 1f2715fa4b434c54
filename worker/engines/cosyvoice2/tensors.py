"""What a tensor of a stranger's file has to be before anything is computed with it."""

import torch
from torch import Tensor


def is_plain(tensor: object) -> bool:
    """Whether it is a dense tensor in memory that holds each of its values once.

    A view that repeats its storage (``expand``) is as small on disk as one value, and as large as
    it claims to be once anything is computed with it.
    """
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
        return False
    if tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
