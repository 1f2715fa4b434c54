"""Which of torch's attention kernels is taken for which shapes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode


class AttentionRecorder(TorchFunctionMode):
    """While it is entered, remembers the kernel that each call of attention is given.

    It asks torch's own choice, which is made from shapes, strides, dtypes and masks alone: nothing
    is computed twice, and nothing waits for the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shapes: dict[str, dict[str, None]] = {}

    @property
    def shapes(self) -> Mapping[str, tuple[str, ...]]:
        """Queries and keys by kernel, as ``dtype [b, heads, n, width] x [b, heads, keys, width]``.

        In the order in which they were first seen.
        """
        return {kernel: tuple(shapes) for kernel, shapes in self._shapes.items()}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Let ``func`` run; note what it is, if it is attention."""
        named = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key = args[:2]
            choose: Callable[..., int] = torch._fused_sdp_choice  # pyright: ignore
            kernel = SDPBackend(choose(*args, **named)).name.lower()
            shape = f"{str(query.dtype)[6:]} {list(query.shape)} x {list(key.shape)}"
            self._shapes.setdefault(kernel, {})[shape] = None
        return func(*args, **named)
