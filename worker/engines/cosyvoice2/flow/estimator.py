"""The flow's estimator: the velocity of every mel frame at one moment of the flow.

Upstream's ``CausalConditionalDecoder``: a U-Net of one level whose every block is a causal residual
convolution and a few transformers. It sees the state, the encoder's output, the speaker and the
prompt's mel. All but the state stay the same over the Euler steps, and so do the moments of the
steps: what depends on them alone is computed once.

An utterance has two rows: with its conditions and without them (classifier-free guidance).
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voicefleet.worker.engines.cosyvoice2.flow.context import ConvContext, LayerContext
from voicefleet.worker.engines.cosyvoice2.flow.layers import (
    WindowConv1d,
    attend,
    split_heads,
    window_weight,
    windows,
)
from voicefleet.worker.engines.cosyvoice2.hyperparameters import FlowSizes

GUIDANCE_ROWS = 2
"""Rows of an utterance: with its conditions, without them."""


def moments(steps: int) -> tuple[list[float], list[float]]:
    """When the Euler steps are taken, on the cosine schedule, and how long they are.

    Rounded in float32 where upstream rounds: times are summed up from the steps' lengths.
    """
    # On the CPU even while a module is built that is nowhere yet.
    places = torch.linspace(0, 1, steps + 1, dtype=torch.float32, device="cpu")
    ends = 1 - torch.cos(places * 0.5 * torch.pi)
    time = ends[0]
    times: list[float] = []
    lengths: list[float] = []
    for end in ends[1:]:
        length = end - time
        times.append(float(time))
        lengths.append(float(length))
        time = time + length
    return times, lengths


class Attention(nn.Module):
    """Multi-head self-attention; no biases but the output's."""

    packed: Tensor

    def __init__(self, channels: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * width
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(channels, inner, bias=False)
        self.to_v = nn.Linear(channels, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])

    def pack(self) -> None:
        """One product for queries, keys and values."""
        weights = [self.to_q.weight, self.to_k.weight, self.to_v.weight]
        self.register_buffer("packed", torch.cat(weights).detach(), persistent=False)
        del self.to_q, self.to_k, self.to_v

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        """``[b, t, channels]`` -> ``[b, t, channels]``."""
        qkv = F.linear(x, self.packed)
        query, own = qkv.tensor_split((qkv.shape[-1] // 3,), -1)
        kv = context.update(own.reshape(*own.shape[:2], 2, self.heads, -1))
        return self.to_out[0](attend(split_heads(query, self.heads), kv, context.mask))


class Gelu(nn.Module):
    """A linear layer and GELU."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, inner)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., channels]`` -> ``[..., inner]``."""
        return F.gelu(self.proj(x))


class FeedForward(nn.Module):
    """Four times as wide inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Upstream has dropout at 1, which holds a place in the names.
        linear = nn.Linear(4 * channels, channels)
        self.net = nn.Sequential(Gelu(channels, 4 * channels), nn.Identity(), linear)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., channels]`` -> ``[..., channels]``."""
        return self.net(x)


class Transformer(nn.Module):
    """Attention and feed-forward, each after a norm and around a residual."""

    def __init__(self, channels: int, heads: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads, width)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        """``[b, t, channels]`` -> ``[b, t, channels]``."""
        x = x + self.attn1(self.norm1(x), context)
        return x + self.ff(self.norm3(x))


class Convolution(nn.Module):
    """A causal convolution over three frames, a norm and Mish."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        # Upstream turns the tensor before and after the norm; those places hold the names.
        self.block = nn.Sequential(
            WindowConv1d(channels, out, 3),
            nn.Identity(),
            nn.LayerNorm(out),
            nn.Identity(),
            nn.Mish(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[b, 2 + t, channels]`` -> ``[b, t, out]``."""
        return self.block(x)


class Residual(nn.Module):
    """Two causal convolutions with the moment added between, and a residual."""

    def __init__(self, channels: int, out: int, time: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time, out))
        self.block1 = Convolution(channels, out)
        self.block2 = Convolution(out, out)
        self.res_conv = WindowConv1d(channels, out, 1)

    def forward(self, extended: Tensor, x: Tensor, moment: Tensor, context: LayerContext) -> Tensor:
        """``x`` ``[b, t, channels]``, also with its left context; ``moment`` is ``[out]``."""
        h = self.block1(extended) + moment
        return self.block2(context.pad_left(h)) + self.res_conv(x)


class Estimator(nn.Module):
    """The U-Net. Call :meth:`pack` once after loading, on its device and in its dtype."""

    moments: Tensor
    entry_state: Tensor
    entry_constants: Tensor
    entry_bias: Tensor

    def __init__(self, sizes: FlowSizes) -> None:
        super().__init__()
        e = sizes.estimator
        self.bands = sizes.mel_bands
        self.channels = e.channels
        self.steps = sizes.steps
        self.features = 4 * sizes.mel_bands
        time = 4 * e.channels

        def transformers() -> nn.ModuleList:
            made = (Transformer(e.channels, e.heads, e.head_width) for _ in range(e.transformers))
            return nn.ModuleList(made)

        def residual(channels: int) -> Residual:
            return Residual(channels, e.channels, time)

        def causal() -> WindowConv1d:
            return WindowConv1d(e.channels, e.channels, 3)

        self.time_mlp = nn.ModuleDict(
            {"linear_1": nn.Linear(self.features, time), "linear_2": nn.Linear(time, time)}
        )
        down = nn.ModuleList([residual(self.features), transformers(), causal()])
        self.down_blocks = nn.ModuleList([down])
        self.mid_blocks = nn.ModuleList(
            nn.ModuleList([residual(e.channels), transformers()]) for _ in range(e.mid_blocks)
        )
        up = nn.ModuleList([residual(2 * e.channels), transformers(), causal()])
        self.up_blocks = nn.ModuleList([up])
        self.final_block = Convolution(e.channels, e.channels)
        self.final_proj = WindowConv1d(e.channels, sizes.mel_bands, 1)

    def pack(self) -> None:
        """Compute what does not change: the moments as each block sees them, and the first layer.

        The first block's convolution and residual become one product, split into its columns for
        the state and those for the constants.
        """
        self.register_buffer("moments", self._moments(), persistent=False)
        first = cast(Residual, cast(nn.ModuleList, self.down_blocks[0])[0])
        conv = cast(WindowConv1d, first.block1.block[0])
        skip = first.res_conv
        # The residual sees the window's last frame only.
        weight = torch.cat([conv.weight, F.pad(skip.weight, (2, 0))])
        state, constants = weight.tensor_split((self.bands,), 1)
        biases = [cast(Tensor, conv.bias), cast(Tensor, skip.bias)]
        self.register_buffer("entry_state", window_weight(state), persistent=False)
        self.register_buffer("entry_constants", window_weight(constants), persistent=False)
        self.register_buffer("entry_bias", torch.cat(biases).detach(), persistent=False)
        del first.block1.block[0], first.res_conv, self.time_mlp

    def _moments(self) -> Tensor:
        """What each residual block adds at each step: ``[steps, blocks, channels]``."""
        one, two = (
            cast(nn.Linear, self.time_mlp["linear_1"]),
            cast(nn.Linear, self.time_mlp["linear_2"]),
        )
        times = torch.tensor(moments(self.steps)[0], device=one.weight.device)
        half = self.features // 2
        scale = torch.exp(torch.arange(half, device=times.device) * -(math.log(10000) / (half - 1)))
        angles = 1000 * times[:, None] * scale
        time = torch.cat([angles.sin(), angles.cos()], -1)
        time = F.linear(time, one.weight.float(), one.bias.float())
        time = F.linear(F.silu(time), two.weight.float(), two.bias.float())
        made: list[Tensor] = []
        for block in (*self.down_blocks, *self.mid_blocks, *self.up_blocks):
            linear = cast(nn.Linear, cast(Residual, cast(nn.ModuleList, block)[0]).mlp[1])
            made.append(F.linear(F.mish(time), linear.weight.float(), linear.bias.float()))
        return torch.stack(made, 1).detach().to(one.weight)

    def constants(
        self, mu: Tensor, speaker: Tensor, prompt: Tensor, context: ConvContext
    ) -> Tensor:
        """The first layer's share of what stays the same over the steps.

        Args:
            mu: The encoder's output, ``[b, t, bands]``.
            speaker: ``[b, bands]``.
            prompt: The prompt's mel where it is known, else zeros, ``[b, t, bands]``.
            context: Of these three; it serves one convolution.

        Returns:
            ``[b, 2, t, 2 * channels]``: with the conditions, without them.
        """
        given = torch.cat([mu, speaker[:, None].expand_as(mu), prompt], -1)
        columns = windows(context.pad_left(given), 3)
        known = F.linear(columns, self.entry_constants, self.entry_bias)
        return torch.stack([known, self.entry_bias.expand_as(known)], 1)

    def forward(
        self, x: Tensor, constants: Tensor, step: int, inputs: ConvContext, context: LayerContext
    ) -> Tensor:
        """The velocity at one step.

        Args:
            x: The state, ``[b, t, bands]``.
            constants: From :meth:`constants`.
            step: Which Euler step, from 0.
            inputs: The context of the state; it serves one convolution.
            context: The context of this step's ``2 b`` rows.

        Returns:
            ``[b, 2, t, bands]``: with the conditions, without them.
        """
        moments = self.moments[step].unbind(0)
        entry = F.linear(windows(inputs.pad_left(x), 3), self.entry_state)
        entry = (entry[:, None] + constants).flatten(0, 1)
        h, skip = entry.tensor_split((self.channels,), -1)

        first, transformers, conv = cast(nn.ModuleList, self.down_blocks[0])
        first = cast(Residual, first)
        h = first.block1(h) + moments[0]
        x = first.block2(context.pad_left(h)) + skip
        x = self._transform(x, transformers, context)
        down, down_extended = x, context.pad_left(x)
        x = conv(down_extended)

        for block, moment in zip(self.mid_blocks, moments[1:-1], strict=True):
            residual, transformers = cast(nn.ModuleList, block)
            x = self._transform(
                residual(context.pad_left(x), x, moment, context), transformers, context
            )

        residual, transformers, conv = cast(nn.ModuleList, self.up_blocks[0])
        extended = torch.cat([context.pad_left(x), down_extended], -1)
        x = residual(extended, torch.cat([x, down], -1), moments[-1], context)
        x = conv(context.pad_left(self._transform(x, transformers, context)))
        x = self.final_proj(self.final_block(context.pad_left(x)))
        return x.view(-1, GUIDANCE_ROWS, *x.shape[1:])

    @staticmethod
    def _transform(x: Tensor, transformers: nn.Module, context: LayerContext) -> Tensor:
        for transformer in cast(nn.ModuleList, transformers):
            x = transformer(x, context)
        return x
