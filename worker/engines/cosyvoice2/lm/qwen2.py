"""The Qwen2 transformer (arXiv:2407.10671) over a KV cache of slots, one slot for each sequence.

``prefill`` processes many embeddings in one slot, ``decode`` takes one step in all slots at once.
The shapes of a pass depend on its bucket alone, so that it can be captured in a CUDA graph; a row's
result does not depend on the other rows.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voicefleet.worker.engines.cosyvoice2.hyperparameters import LanguageModelSizes


class KVCache:
    """Keys and values of ``slots`` sequences: ``[layers, slots, kv_heads, length, head_width]``.

    Entries after a sequence's position are stale until they are overwritten; masks hide them.
    """

    def __init__(
        self,
        sizes: LanguageModelSizes,
        slots: int,
        length: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (sizes.layers, slots, sizes.kv_heads, length, sizes.head_width)
        # Zeros, not empty: a masked NaN is still NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.slots = slots
        self.length = length

    @staticmethod
    def bytes_per_slot(sizes: LanguageModelSizes, length: int, dtype: torch.dtype) -> int:
        """Memory of one slot of ``length`` positions."""
        return 2 * sizes.layers * sizes.kv_heads * sizes.head_width * length * dtype.itemsize


class Rotary(nn.Module):
    """Rotary position embedding (arXiv:2104.09864), pairing channels by halves; angles in fp32."""

    cos: Tensor
    sin: Tensor

    def __init__(self, width: int, theta: float) -> None:
        super().__init__()
        self._width = width
        self._theta = theta

    def prepare(self, length: int, dtype: torch.dtype, device: torch.device) -> None:
        """Compute the table for ``length`` positions."""
        frequency = self._theta ** (
            -torch.arange(0, self._width, 2, dtype=torch.float32, device=device) / self._width
        )
        angle = torch.arange(length, dtype=torch.float32, device=device)[:, None] * frequency
        angle = torch.cat((angle, angle), dim=-1)
        self.register_buffer("cos", angle.cos().to(dtype), persistent=False)
        self.register_buffer("sin", angle.sin().to(dtype), persistent=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate ``x [B, heads, T, width]`` by the angles ``[B, 1, T, width]`` of its positions."""
        left, right = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-right, left), dim=-1) * sin


class RMSNorm(nn.Module):
    """Root mean square norm (arXiv:1910.07467), in float32 as Qwen2 does it."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Norm over the last axis."""
        return F.rms_norm(x, self.weight.shape, self.weight, self._eps)


class Attention(nn.Module):
    """Grouped-query self-attention."""

    def __init__(self, sizes: LanguageModelSizes) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.width = sizes.heads, sizes.kv_heads, sizes.head_width
        kv = self.kv_heads * self.width
        self.q_proj = nn.Linear(sizes.width, self.heads * self.width)
        self.k_proj = nn.Linear(sizes.width, kv)
        self.v_proj = nn.Linear(sizes.width, kv)
        self.o_proj = nn.Linear(self.heads * self.width, sizes.width, bias=False)
        self._fused: nn.Linear | None = None

    def optimise(self) -> None:
        """Fuse the three projections into one."""
        if self._fused is None:
            self._fused = _stacked(self.q_proj, self.k_proj, self.v_proj)
            del self.q_proj, self.k_proj, self.v_proj

    def project(self, x: Tensor, cos: Tensor, sin: Tensor, rotary: Rotary) -> list[Tensor]:
        """Queries, keys and values ``[B, heads, T, head_width]`` of ``x [B, T, width]``."""
        if self._fused is not None:
            joined = self._fused(x)
        else:
            joined = torch.cat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), dim=-1)
        split = joined.view(*x.shape[:2], -1, self.width).transpose(1, 2)
        turned = rotary(split[:, : self.heads + self.kv_heads], cos, sin)
        return [
            turned[:, : self.heads],
            turned[:, self.heads :],
            split[:, self.heads + self.kv_heads :],
        ]

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attention of ``q [B, heads, T, D]`` to ``[B, kv_heads, L, D]``; mask ``[B, 1, T, L]``.

        Query heads that share a key head are laid out as further positions, so that no key is
        repeated in memory.
        """
        batch, _, steps, width = q.shape
        group = self.heads // self.kv_heads
        grouped = q.reshape(batch, self.kv_heads, group * steps, width)
        if steps > 1:
            mask = mask.repeat(1, 1, group, 1)
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
        out = out.reshape(batch, self.heads, steps, width).transpose(1, 2)
        return self.o_proj(out.flatten(2))


class FeedForward(nn.Module):
    """SwiGLU (arXiv:2002.05202)."""

    def __init__(self, sizes: LanguageModelSizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.width, sizes.mlp, bias=False)
        self.up_proj = nn.Linear(sizes.width, sizes.mlp, bias=False)
        self.down_proj = nn.Linear(sizes.mlp, sizes.width, bias=False)
        self._fused: nn.Linear | None = None

    def optimise(self) -> None:
        """Fuse gate and up projection into one."""
        if self._fused is None:
            self._fused = _stacked(self.gate_proj, self.up_proj)
            del self.gate_proj, self.up_proj

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, width]`` to the same."""
        if self._fused is not None:
            gate, up = self._fused(x).chunk(2, dim=-1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(F.silu(gate) * up)


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, sizes: LanguageModelSizes) -> None:
        super().__init__()
        self.self_attn = Attention(sizes)
        self.mlp = FeedForward(sizes)
        self.input_layernorm = RMSNorm(sizes.width, sizes.norm_eps)
        self.post_attention_layernorm = RMSNorm(sizes.width, sizes.norm_eps)


class Qwen2(nn.Module):
    """The transformer without a head: embeddings in, normed hidden states out."""

    def __init__(self, sizes: LanguageModelSizes) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        self.norm = RMSNorm(sizes.width, sizes.norm_eps)
        self.rotary = Rotary(sizes.head_width, sizes.rope_theta)

    def optimise(self) -> None:
        """Fuse the projections that have the same input."""
        for layer in self._layers():
            layer.self_attn.optimise()
            layer.mlp.optimise()

    def prefill(
        self, x: Tensor, slot: Tensor, start: Tensor, cache: KVCache, context_len: int
    ) -> Tensor:
        """Process ``x [1, T, width]`` in ``slot`` from position ``start`` on.

        Args:
            x: Embeddings; padding at the end is written to the cache too, but never attended to.
            slot: ``[1]`` int64.
            start: ``[1]`` int64: how many positions of the slot are filled.
            cache: Written at ``start .. start + T``; positions beyond its end are written to its
                last one.
            context_len: Positions of the cache that attention reads; at least ``start + T``.

        Returns:
            Hidden states ``[1, T, width]``.
        """
        steps = torch.arange(x.shape[1], device=x.device)
        positions = (start + steps).clamp_(max=cache.length - 1)
        cos, sin = self.rotary.cos[positions][None, None], self.rotary.sin[positions][None, None]
        seen = torch.arange(context_len, device=x.device)[None, :] <= positions[:, None]
        slots = slot.expand(x.shape[1])
        for index, layer in enumerate(self._layers()):
            q, k, v = layer.self_attn.project(layer.input_layernorm(x), cos, sin, self.rotary)
            keys, values = cache.keys[index], cache.values[index]
            keys[slots, :, positions] = k[0].transpose(0, 1)
            values[slots, :, positions] = v[0].transpose(0, 1)
            own_keys, own_values = keys.index_select(0, slot), values.index_select(0, slot)
            x = x + layer.self_attn.attend(
                q, own_keys[:, :, :context_len], own_values[:, :, :context_len], seen[None, None]
            )
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.norm(x)

    def decode(self, x: Tensor, positions: Tensor, cache: KVCache, context_len: int) -> Tensor:
        """Take one step in every slot.

        Args:
            x: ``[slots, width]``: each slot's next embedding.
            positions: ``[slots]`` int64: each slot's position. Repeating a step at the same
                position with the same embedding changes nothing.
            cache: Written at ``positions``.
            context_len: Positions of the cache that attention reads: more than the largest of
                ``positions`` whose output matters.

        Returns:
            Hidden states ``[slots, width]``.
        """
        x = x[:, None]
        cos = self.rotary.cos[positions][:, None, None]
        sin = self.rotary.sin[positions][:, None, None]
        slots = torch.arange(cache.slots, device=x.device)
        seen = (torch.arange(context_len, device=x.device) <= positions[:, None])[:, None, None]
        for index, layer in enumerate(self._layers()):
            q, k, v = layer.self_attn.project(layer.input_layernorm(x), cos, sin, self.rotary)
            keys, values = cache.keys[index], cache.values[index]
            keys[slots, :, positions] = k[:, :, 0]
            values[slots, :, positions] = v[:, :, 0]
            x = x + layer.self_attn.attend(
                q, keys[:, :, :context_len], values[:, :, :context_len], seen
            )
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.norm(x[:, 0])

    def _layers(self) -> list[Layer]:
        return list(self.layers)  # pyright: ignore[reportReturnType]  (ModuleList is not generic)


def _stacked(*parts: nn.Linear) -> nn.Linear:
    """One linear layer in place of several with the same input."""
    weight = torch.cat([part.weight for part in parts])
    joined = nn.Linear(
        weight.shape[1], weight.shape[0], bias=False, device="meta", dtype=weight.dtype
    )
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if parts[0].bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
        joined.bias = nn.Parameter(torch.cat([part.bias for part in parts]), requires_grad=False)
    return joined
