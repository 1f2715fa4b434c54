"""Copies between host and device that make neither wait for the other."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def to_device(values: Tensor | Sequence[int] | Sequence[bool], device: torch.device) -> Tensor:
    """Copy to the device, integers as int64, without waiting for the work queued there."""
    tensor = values if isinstance(values, Tensor) else torch.tensor(values, dtype=_kind(values))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _kind(values: Sequence[int] | Sequence[bool]) -> torch.dtype:
    return torch.bool if values and isinstance(values[0], bool) else torch.int64


class Transfer:
    """An asynchronous copy of a tensor to the host: started now, awaited later."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: Any = None
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            # The next step overwrites static tensors.
            self._host = tensor.clone()

    @property
    def ready(self) -> bool:
        """Whether the copy is complete."""
        return self._event is None or bool(self._event.query())

    def wait(self) -> Tensor:
        """Wait for the copy; return the tensor on the host."""
        if self._event is not None:
            self._event.synchronize()
        return self._host
