"""Bringing results to the host without stopping the device."""

from typing import Any

import torch
from torch import Tensor


class Transfer:
    """A tensor on its way to the host: asked for now, waited for later."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: Any = None
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            # A static tensor is overwritten by the next step.
            self._host = tensor.clone()

    @property
    def ready(self) -> bool:
        """Whether it has arrived."""
        return self._event is None or bool(self._event.query())

    def wait(self) -> Tensor:
        """The tensor, on the host."""
        if self._event is not None:
            self._event.synchronize()
        return self._host
