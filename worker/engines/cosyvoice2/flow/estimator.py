"""The flow's estimator: the velocity of every mel frame at one Euler step.

Upstream's ``CausalConditionalDecoder``: a U-Net of one level, whose blocks are a causal residual
convolution and a few transformers each. Its inputs are the solver's state, the encoder's output,
the speaker and the prompt's mel. All but the state are the same for all Euler steps, and the times
of the steps are fixed: what depends on these alone is computed once.

An utterance has two rows: with its conditions, and without (classifier-free guidance).
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
"""Rows of an utterance: with its conditions, and without."""


def moments(steps: int) -> tuple[list[float], list[float]]:
    """The times of the Euler steps on the cosine schedule, and the steps' lengths.

    Rounded to float32 where upstream rounds: times are sums of the steps' lengths.
    """
    # The device is named because a module may be built on the meta device.
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
    """Multi-head self-attention; only the output projection has a bias."""

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
        """Fuse queries, keys and values into one product."""
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
    """A feed-forward layer whose hidden layer is four times as wide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Identity keeps the weight names: upstream has dropout there.
        linear = nn.Linear(4 * channels, channels)
        self.net = nn.Sequential(Gelu(channels, 4 * channels), nn.Identity(), linear)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., channels]`` -> ``[..., channels]``."""
        return self.net(x)


class Transformer(nn.Module):
    """Attention and feed-forward, each with pre-norm and residual."""

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
    """A causal convolution of kernel three, a norm and Mish."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        # Identities keep the weight names: upstream transposes there.
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
    """Two causal convolutions with the time embedding added between, and a residual."""

    def __init__(self, channels: int, out: int, time: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time, out))
        self.block1 = Convolution(channels, out)
        self.block2 = Convolution(out, out)
        self.res_conv = WindowConv1d(channels, out, 1)

    def forward(self, extended: Tensor, x: Tensor, moment: Tensor, context: LayerContext) -> Tensor:
        """``x`` ``[b, t, channels]``; ``extended``: with left context; ``moment`` ``[out]``."""
        h = self.block1(extended) + moment
        return self.block2(context.pad_left(h)) + self.res_conv(x)


class Estimator(nn.Module):
    """The U-Net. Call :meth:`pack` once after loading, on the final device and dtype."""

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
        """Precompute the blocks' time embeddings, and fuse the first layer.

        The first block's convolution and residual become one product, split into the columns for
        the state and those for the constant inputs.
        """
        self.register_buffer("moments", self._moments(), persistent=False)
        first = cast(Residual, cast(nn.ModuleList, self.down_blocks[0])[0])
        conv = cast(WindowConv1d, first.block1.block[0])
        skip = first.res_conv
        # The residual uses the window's last frame only.
        weight = torch.cat([conv.weight, F.pad(skip.weight, (2, 0))])
        state, constants = weight.tensor_split((self.bands,), 1)
        biases = [cast(Tensor, conv.bias), cast(Tensor, skip.bias)]
        self.register_buffer("entry_state", window_weight(state), persistent=False)
        self.register_buffer("entry_constants", window_weight(constants), persistent=False)
        self.register_buffer("entry_bias", torch.cat(biases).detach(), persistent=False)
        del first.block1.block[0], first.res_conv, self.time_mlp

    def _moments(self) -> Tensor:
        """The time embedding of each step in each block: ``[steps, blocks, channels]``."""
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
        """Compute the first layer's part that is the same for all Euler steps.

        Args:
            mu: The encoder's output, ``[b, t, bands]``.
            speaker: ``[b, bands]``.
            prompt: The prompt's mel, zeros after the prompt, ``[b, t, bands]``.
            context: The left context of these three, for one convolution.

        Returns:
            ``[b, 2, t, 2 * channels]``: with the conditions, and without.
        """
        given = torch.cat([mu, speaker[:, None].expand_as(mu), prompt], -1)
        columns = windows(context.pad_left(given), 3)
        known = F.linear(columns, self.entry_constants, self.entry_bias)
        return torch.stack([known, self.entry_bias.expand_as(known)], 1)

    def forward(
        self, x: Tensor, constants: Tensor, step: int, inputs: ConvContext, context: LayerContext
    ) -> Tensor:
        """Compute the velocity at one Euler step.

        Args:
            x: The state, ``[b, t, bands]``.
            constants: From :meth:`constants`.
            step: The Euler step, from 0.
            inputs: The left context of the state, for one convolution.
            context: The layers' context at this step, with ``2 b`` rows.

        Returns:
            ``[b, 2, t, bands]``: with the conditions, and without.
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
