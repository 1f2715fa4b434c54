"""Records which attention kernel runs, for each shape that an engine uses."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode

from bench.cosyvoice.trace import device_events

Description = tuple[tuple[Any, ...], ...]
"""Dtype, shape, strides and device of each tensor of a call; empty for an absent mask."""


class AttentionCalls(TorchFunctionMode):
    """A context manager that counts attention calls by the kind of their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[Description, int] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run ``func``, and record its arguments if it is attention."""
        named = kwargs or {}
        if func is F.scaled_dot_product_attention:
            mask = named.get("attn_mask", args[3] if len(args) > 3 else None)
            kind = tuple(map(_described, (*args[:3], mask)))
            self._calls[kind] = self._calls.get(kind, 0) + 1
        return func(*args, **named)

    @torch.inference_mode()
    def described(self, *, with_kernels: bool) -> list[dict[str, Any]]:
        """Each kind of call, with torch's choice for it.

        Args:
            with_kernels: Also run each once on tensors of its kind and name what the device ran,
                with the first call's ms and a later one's. Needs CUDA.
        """
        found: list[dict[str, Any]] = []
        for kind, times in self._calls.items():
            query, key, value, mask = map(_tensor, kind)
            choose: Callable[..., int] = torch._fused_sdp_choice
            one = {
                "query": kind[0][:2],
                "key": kind[1][:2],
                "mask": kind[3][:2],
                "calls": times,
                "backend": SDPBackend(choose(query, key, value, attn_mask=mask)).name.lower(),
            }
            if with_kernels:
                one["kernels"] = [
                    {"name": event.name[:120], "us": event.us}
                    for event in device_events(
                        lambda q=query, k=key, v=value, m=mask: F.scaled_dot_product_attention(
                            q, k, v, attn_mask=m
                        )
                    )
                ]
            found.append(one)
        return found


def _described(tensor: Tensor | None) -> tuple[Any, ...]:
    if tensor is None:
        return ()
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    return str(tensor.dtype).removeprefix("torch."), shape, strides, str(tensor.device)


def _tensor(described: tuple[Any, ...]) -> Tensor | None:
    """A tensor of that kind: noise, or a mask without effect."""
    if not described:
        return None
    dtype, shape, strides, device = described
    # Strides of 0, as of a mask for all heads, let elements share their memory.
    size = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    memory = torch.empty(size, dtype=getattr(torch, dtype), device=device)
    memory = memory.fill_(True) if memory.dtype == torch.bool else memory.normal_()
    return memory.as_strided(shape, strides)
