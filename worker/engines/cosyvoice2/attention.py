"""Records which of torch's attention kernels runs for which shapes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode


class AttentionRecorder(TorchFunctionMode):
    """A context manager that records the kernel torch chooses for each attention call.

    Torch chooses by shapes, strides, dtypes and masks alone, so that asking it computes nothing
    and never waits for the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shapes: dict[str, dict[str, None]] = {}

    @property
    def shapes(self) -> Mapping[str, tuple[str, ...]]:
        """Query and key shapes by kernel, in the order in which they were first seen.

        Each is written as ``dtype [b, heads, n, width] x [b, heads, keys, width]``.
        """
        return {kernel: tuple(shapes) for kernel, shapes in self._shapes.items()}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run ``func``, and record it if it is attention."""
        named = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key = args[:2]
            choose: Callable[..., int] = torch._fused_sdp_choice  # pyright: ignore
            kernel = SDPBackend(choose(*args, **named)).name.lower()
            shape = f"{str(query.dtype)[6:]} {list(query.shape)} x {list(key.shape)}"
            self._shapes.setdefault(kernel, {})[shape] = None
        return func(*args, **named)
