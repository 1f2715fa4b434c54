"""What a stretch of audio needs of all that came before it: left context and keys and values.

The flow's layers ask a :class:`Past` and do not know whether it is empty (a whole utterance in one
go) or a cache (the next block of one). Time runs along dimension 1 everywhere: ``[batch, time,
channels]``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

CONTEXT = 2
"""Frames that a causal convolution looks back: all of the flow's see three."""


class LeftPast(Protocol):
    """The past of causal convolutions. Every call is the next convolution's, in a fixed order."""

    def extend(self, x: Tensor) -> Tensor:
        """``[b, time, channels]`` and the two frames before it: ``[b, 2 + time, channels]``."""
        ...


class Past(LeftPast, Protocol):
    """The past of convolutions and of attention, for one pass through their layers."""

    @property
    def mask(self) -> Tensor:
        """What is added to attention scores: ``[batch, 1, 1 or queries, keys]``, 0 or -inf."""
        ...

    def join(self, kv: Tensor) -> Tensor:
        """Keys and values ``[batch, time, 2, heads, width]`` with all earlier ones before them."""
        ...


@dataclass(frozen=True)
class FlowPast:
    """The pasts of one pass through the whole flow.

    ``tokens`` and ``frames`` are the encoder's at its two rates; ``constants`` is for what the
    estimator is given besides its state, ``inputs`` for that state, one convolution an Euler step;
    ``steps`` are the estimator's, one an Euler step, with two rows for each utterance.
    """

    tokens: Past
    frames: Past
    constants: LeftPast
    inputs: LeftPast
    steps: Sequence[Past]


class NoPast:
    """Before the start of an utterance: silence, and nothing to attend to."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def extend(self, x: Tensor) -> Tensor:
        """``x`` with two frames of zeros before it."""
        return F.pad(x, (0, 0, CONTEXT, 0))

    def join(self, kv: Tensor) -> Tensor:
        """``kv`` as it is."""
        return kv


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as what is added to attention scores: 0 where visible, else -inf."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, float("-inf"))


def whole(lengths: Tensor, size: int, chunk: int | None, dtype: torch.dtype) -> NoPast:
    """The past of ``size`` frames from an utterance's start, of which row i has ``lengths[i]``.

    With ``chunk`` a frame sees its own chunk of so many frames and all before it, else everything.
    """
    places = torch.arange(size, device=lengths.device)
    visible = (places < lengths[:, None])[:, None, None, :]
    if chunk is not None:
        chunks = places // chunk
        visible = visible & (chunks <= chunks[:, None])
    return NoPast(additive(visible, dtype))
