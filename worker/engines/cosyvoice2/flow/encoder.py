"""The flow's encoder: speech tokens to one vector for each mel frame.

A convolution with three tokens of look-ahead, conformer layers (without convolutions) at the token
rate, upsampling by two, conformer layers at the frame rate. Attention uses relative positions
(Transformer-XL, arXiv:1901.02860, section 3.3), so that cached keys stay valid.

Parameters have upstream's names; ``pack`` replaces some of them with fused ones after loading.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voicefleet.worker.engines.cosyvoice2.flow.context import LayerContext
from voicefleet.worker.engines.cosyvoice2.flow.layers import (
    WindowConv1d,
    attend,
    split_heads,
    window_weight,
    windows,
)
from voicefleet.worker.engines.cosyvoice2.hyperparameters import EncoderSizes


def distances(queries: int, keys: int, device: torch.device) -> Tensor:
    """The distances between queries and keys, if the last key is the last query.

    Returns:
        Float32 ``[keys + queries]``, falling: from ``keys - 1`` (first key, last query) to
        ``1 - queries`` (last key, first query), and one more.
    """
    return torch.arange(keys - 1, -queries - 1, -1, dtype=torch.float32, device=device)


def sinusoids(places: Tensor, width: int) -> Tensor:
    """Sinusoidal embeddings, sine and cosine alternating: ``[n]`` -> ``[n, width]`` float32."""
    channels = torch.arange(0, width, 2, dtype=torch.float32, device=places.device)
    angles = places[:, None] * torch.exp(channels * (-math.log(10000.0) / width))
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)


def by_key(scores: Tensor, keys: int) -> Tensor:
    """Turn scores by distance into scores by key, without a copy.

    Query i finds key j in column ``queries - 1 - i + j``. Viewed with rows one column shorter, the
    memory has key j of every query in column j.

    Args:
        scores: ``[b, heads, queries, keys + queries]``, contiguous in the last two.
        keys: How many keys there are.

    Returns:
        A view ``[b, heads, queries, keys]``.
    """
    batch, heads, queries, columns = scores.shape
    flat = scores.view(batch, heads, -1)[..., queries - 1 : -1]
    return flat.view(batch, heads, queries, columns - 1)[..., :keys]


class RelativeAttention(nn.Module):
    """Self-attention with relative positions: scores by content plus scores by distance."""

    packed_weight: Tensor
    packed_bias: Tensor

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        width = sizes.width
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(sizes.heads, width // sizes.heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(sizes.heads, width // sizes.heads))

    def pack(self) -> None:
        """Fuse keys, values, and queries with each of their two biases into one product."""
        q, k, v = self.linear_q, self.linear_k, self.linear_v
        weight = torch.cat([q.weight, q.weight, k.weight, v.weight]).detach()
        u, w = self.pos_bias_u.flatten(), self.pos_bias_v.flatten()
        bias = torch.cat([q.bias + u, q.bias + w, k.bias, v.bias]).detach()
        self.register_buffer("packed_weight", weight, persistent=False)
        self.register_buffer("packed_bias", bias, persistent=False)
        del self.linear_q, self.linear_k, self.linear_v, self.pos_bias_u, self.pos_bias_v

    def positions(self, table: Tensor) -> Tensor:
        """Project position embeddings: ``[n, width]`` -> ``[heads, n, head width]``."""
        return self.linear_pos(table).view(len(table), self.heads, -1).transpose(0, 1).contiguous()

    def forward(self, x: Tensor, positions: Tensor, context: LayerContext) -> Tensor:
        """``x`` ``[b, t, width]``; ``positions`` for the keys of the context and of ``x``."""
        batch, time, width = x.shape
        packed = F.linear(x, self.packed_weight, self.packed_bias)
        by_content, by_distance, own = packed.tensor_split((width, 2 * width), -1)
        kv = context.update(own.reshape(batch, time, 2, self.heads, -1))
        # Distances are the same for all rows: one product for each head, whatever the batch. Scores
        # by content are scaled inside the attention kernel, these here.
        query = split_heads(by_distance, self.heads).transpose(0, 1).flatten(1, 2)
        scale = (width // self.heads) ** -0.5
        scores = torch.bmm(query * scale, positions.transpose(1, 2))
        scores = scores.view(self.heads, batch, time, -1).transpose(0, 1)
        bias = by_key(scores, kv.shape[1]) + context.mask
        return self.linear_out(attend(split_heads(by_content, self.heads), kv, bias))


class FeedForward(nn.Module):
    """Two linear layers with SiLU between them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(width, inner)
        self.w_2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` -> ``[..., width]``."""
        return self.w_2(F.silu(self.w_1(x)))


class ConformerLayer(nn.Module):
    """Attention and feed-forward, each with pre-norm and residual."""

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.self_attn = RelativeAttention(sizes)
        self.feed_forward = FeedForward(sizes.width, sizes.mlp)
        self.norm_ff = nn.LayerNorm(sizes.width, eps=1e-12)
        self.norm_mha = nn.LayerNorm(sizes.width, eps=1e-12)

    def forward(self, x: Tensor, positions: Tensor, context: LayerContext) -> Tensor:
        """``[b, t, width]`` -> ``[b, t, width]``."""
        x = x + self.self_attn(self.norm_mha(x), positions, context)
        return x + self.feed_forward(self.norm_ff(x))


class Embed(nn.Module):
    """A linear layer and a norm, scaled by the square root of the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width, eps=1e-5))
        self.scale = math.sqrt(width)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` -> ``[..., width]``."""
        return self.out(x) * self.scale


class Lookahead(nn.Module):
    """Look-ahead: a convolution over the next tokens, a causal one, and a residual."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.conv1 = WindowConv1d(width, width, tokens + 1)
        self.conv2 = WindowConv1d(width, width, 3)

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        """``[b, t + lookahead, width]`` -> ``[b, t, width]``."""
        ahead = F.leaky_relu(self.conv1(x))
        return self.conv2(context.pad_left(ahead)) + x[:, : -self.tokens]


class Upsample(nn.Module):
    """Repeats every vector, then applies a causal convolution of kernel five."""

    packed: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 5)

    def pack(self) -> None:
        """Fuse: five repeated frames come from three tokens, so kernel three makes both frames."""
        taps = self.conv.weight.detach().float().unbind(-1)
        even = torch.stack([taps[0] + taps[1], taps[2] + taps[3], taps[4]], -1)
        odd = torch.stack([taps[0], taps[1] + taps[2], taps[3] + taps[4]], -1)
        packed = torch.cat([window_weight(even), window_weight(odd)]).to(self.conv.weight)
        self.register_buffer("packed", packed, persistent=False)
        bias = cast(Tensor, self.conv.bias).detach().repeat(2)
        self.register_buffer("packed_bias", bias, persistent=False)
        del self.conv

    packed_bias: Tensor

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        """``[b, t, width]`` -> ``[b, 2 t, width]``."""
        pairs = F.linear(windows(context.pad_left(x), 3), self.packed, self.packed_bias)
        return pairs.view(x.shape[0], -1, x.shape[-1])


class Encoder(nn.Module):
    """Upstream's ``UpsampleConformerEncoder`` as CosyVoice 2 sets it up."""

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.embed = Embed(sizes.width)
        self.after_norm = nn.LayerNorm(sizes.width, eps=1e-5)
        self.pre_lookahead_layer = Lookahead(sizes.width, sizes.lookahead)
        self.encoders = nn.ModuleList(ConformerLayer(sizes) for _ in range(sizes.blocks))
        self.up_layer = Upsample(sizes.width)
        self.up_embed = Embed(sizes.width)
        self.up_encoders = nn.ModuleList(ConformerLayer(sizes) for _ in range(sizes.up_blocks))
        self.width = sizes.width

    def positions(self, queries: int, keys: int) -> list[Tensor]:
        """The position embeddings of each layer, for ``keys`` tokens of which the last are queries.

        Returns:
            For each layer ``[heads, n, head width]``; layers after upsampling have twice the
            queries and keys. For fewer keys, use the last rows.
        """
        weight = self.after_norm.weight
        tables = [
            sinusoids(distances(queries * rate, keys * rate, weight.device), self.width)
            for rate in (1, 2)
        ]
        layers = ((self.encoders, tables[0]), (self.up_encoders, tables[1]))
        return [
            cast(ConformerLayer, layer).self_attn.positions(table.to(weight))
            for group, table in layers
            for layer in group
        ]

    def forward(
        self,
        x: Tensor,
        present: Tensor,
        positions: Sequence[Tensor],
        tokens: LayerContext,
        frames: LayerContext,
    ) -> Tensor:
        """Encode tokens.

        Args:
            x: Token vectors followed by the look-ahead, ``[b, t + lookahead, width]``.
            present: Bool ``[b, t + lookahead]``: which tokens are known. The others become zeros,
                which is how upstream ends an utterance.
            positions: From :meth:`positions`, for the tokens of the context and ``t`` queries.
            tokens: The layers' context at the token rate.
            frames: The layers' context at the frame rate.

        Returns:
            ``[b, 2 t, width]``.
        """
        x = self.embed(x) * present[..., None]
        x = self.pre_lookahead_layer(x, tokens)
        split = len(self.encoders)
        for layer, table in zip(self.encoders, positions[:split], strict=True):
            x = layer(x, table, tokens)
        x = self.up_embed(self.up_layer(x, tokens))
        for layer, table in zip(self.up_encoders, positions[split:], strict=True):
            x = layer(x, table, frames)
        return self.after_norm(x)
