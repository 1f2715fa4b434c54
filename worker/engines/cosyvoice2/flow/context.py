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
    """The pasts of one pass through the whole flow.

    ``tokens`` and ``frames`` are the encoder's at its two rates; ``constants`` is for what the
    estimator is given besides its state, ``inputs`` for that state, one convolution an Euler step;
    ``steps`` are the estimator's, one an Euler step, with two rows for each utterance.
    """

    tokens: LayerContext
    frames: LayerContext
    constants: ConvContext
    inputs: ConvContext
    steps: Sequence[LayerContext]


class EmptyContext:
    """Before the start of an utterance: silence, and nothing to attend to."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def pad_left(self, x: Tensor) -> Tensor:
        """``x`` with two frames of zeros before it."""
        return F.pad(x, (0, 0, LEFT_FRAMES, 0))

    def update(self, kv: Tensor) -> Tensor:
        """``kv`` as it is."""
        return kv


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as what is added to attention scores: 0 where visible, else -inf."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, float("-inf"))


def full_context(lengths: Tensor, size: int, chunk: int | None, dtype: torch.dtype) -> EmptyContext:
    """The context of ``size`` frames from an utterance's start, of which row i has ``lengths[i]``.

    With ``chunk`` a frame sees its own chunk of so many frames and all before it, else everything.
    """
    places = torch.arange(size, device=lengths.device)
    visible = (places < lengths[:, None])[:, None, None, :]
    if chunk is not None:
        chunks = places // chunk
        visible = visible & (chunks <= chunks[:, None])
    return EmptyContext(additive_mask(visible, dtype))
