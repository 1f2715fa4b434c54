"""Layers that the flow's encoder and estimator share, on ``[batch, time, channels]``."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def windows(x: Tensor, size: int) -> Tensor:
    """Sliding windows of ``size`` frames: ``[b, t, c]`` -> ``[b, t - size + 1, size * c]``."""
    count = x.shape[1] - size + 1
    return x if size == 1 else torch.cat([x[:, i : i + count] for i in range(size)], -1)


def window_weight(weight: Tensor) -> Tensor:
    """A convolution's weight ``[out, in, size]`` as a matrix for windows: ``[out, size * in]``."""
    return weight.detach().transpose(1, 2).flatten(1).contiguous()


class WindowConv1d(nn.Conv1d):
    """A convolution without padding, computed as one matrix product over sliding windows.

    The product adds the bias and needs no other memory layout, which makes it faster than a
    convolution for many short inputs. ``pack`` replaces the weight.
    """

    packed: Tensor

    def pack(self) -> None:
        """Reshape the weight for the product."""
        self.register_buffer("packed", window_weight(self.weight), persistent=False)
        self.register_parameter("weight", None)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the parent's name)
        """``[b, t, in]`` -> ``[b, t - size + 1, out]``."""
        return F.linear(windows(input, self.kernel_size[0]), self.packed, self.bias)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[b, t, heads * width]`` -> ``[b, heads, t, width]``, without a copy."""
    return x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2)


def attend(query: Tensor, kv: Tensor, mask: Tensor) -> Tensor:
    """Scaled dot product attention.

    Args:
        query: ``[b, heads, queries, width]``.
        kv: Keys and values, ``[b, keys, 2, heads, width]``.
        mask: Added to the scores; broadcast to ``[b, heads, queries, keys]``.

    Returns:
        ``[b, queries, heads * width]``.
    """
    key, value = kv.transpose(1, 3).unbind(2)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)
