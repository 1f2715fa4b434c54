"""What the flow's layers need of earlier frames: convolutions' left context, attention's KV cache.

A layer asks its :class:`LayerContext` for both. It does not know whether the context is empty (a
whole utterance is computed at once) or read from a cache (the next block of one). Time is
dimension 1 everywhere: ``[batch, time, channels]``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

LEFT_FRAMES = 2
"""Earlier frames that a causal convolution needs: the flow's have kernels of three."""


class ConvContext(Protocol):
    """The left context of causal convolutions, which call it one after another in a fixed order."""

    def pad_left(self, x: Tensor) -> Tensor:
        """``x`` ``[b, time, channels]`` behind the two frames before it: ``[b, 2 + time, c]``."""
        ...


class LayerContext(ConvContext, Protocol):
    """The context of convolutions and of attention layers, for one pass through them."""

    @property
    def mask(self) -> Tensor:
        """The mask added to attention scores, 0 or -inf: ``[batch, 1, 1 or queries, keys]``."""
        ...

    def update(self, kv: Tensor) -> Tensor:
        """Store keys and values ``[batch, time, 2, heads, width]``; return all, earlier ones first.

        As ``Cache.update`` of transformers does.
        """
        ...


@dataclass(frozen=True)
class FlowContext:
    """The contexts for one pass through the whole flow.

    Attributes:
        tokens: For the encoder's layers at the token rate.
        frames: For the encoder's layers at the frame rate.
        constants: For the estimator's convolution over its constant inputs.
        inputs: For its convolution over the solver's state, which runs once each Euler step.
        steps: For its other layers, one for each Euler step, with two rows for each utterance.
    """

    tokens: LayerContext
    frames: LayerContext
    constants: ConvContext
    inputs: ConvContext
    steps: Sequence[LayerContext]


class EmptyContext:
    """The context at an utterance's start: zeros for convolutions, no keys for attention."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def pad_left(self, x: Tensor) -> Tensor:
        """``x`` behind two frames of zeros."""
        return F.pad(x, (0, 0, LEFT_FRAMES, 0))

    def update(self, kv: Tensor) -> Tensor:
        """Return ``kv`` unchanged."""
        return kv


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask to add to attention scores: 0 where ``visible``, else -inf."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, float("-inf"))


def full_context(lengths: Tensor, size: int, chunk: int | None, dtype: torch.dtype) -> EmptyContext:
    """The context to compute ``size`` frames from the start, of which row i has ``lengths[i]``.

    With ``chunk``, a frame attends to its own chunk of so many frames and to all earlier ones;
    without, to all frames.
    """
    places = torch.arange(size, device=lengths.device)
    visible = (places < lengths[:, None])[:, None, None, :]
    if chunk is not None:
        chunks = places // chunk
        visible = visible & (chunks <= chunks[:, None])
    return EmptyContext(additive_mask(visible, dtype))
