"""The flow's caches on the device: pages of keys and values, and convolution states.

A *page* holds the keys and values of one block, for every attention layer, Euler step and guidance
row. It is large, and never written again once its block is complete, so that all utterances of a
voice share the pages of its prompt. A *state* holds the two frames before the next block, for every
causal convolution. It is small; each utterance has one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from voicefleet.worker.engines.cosyvoice2.flow.context import (
    LEFT_FRAMES,
    FlowContext,
    additive_mask,
)
from voicefleet.worker.engines.cosyvoice2.flow.estimator import GUIDANCE_ROWS
from voicefleet.worker.engines.cosyvoice2.flow.step_inputs import StepInputs
from voicefleet.worker.engines.cosyvoice2.hyperparameters import FlowSizes


class CachedConvContext:
    """The left context of a pass's convolutions, read from states and written back by ``commit``.

    Args:
        pool: ``[convolutions, states, rows, 2, channels]``.
        source: i64 ``[batch]``: the states to read. They are read immediately.
    """

    def __init__(self, pool: Tensor, source: Tensor) -> None:
        self._pool = pool
        self._before = pool.index_select(1, source).flatten(1, 2).unbind(0)
        self._kept: list[Tensor] = []
        self._after: Tensor | None = None

    def pad_left(self, x: Tensor) -> Tensor:
        """As :meth:`LayerContext.pad_left`."""
        before = self._before[len(self._kept)]
        self._kept.append(x[:, -LEFT_FRAMES:])
        if len(self._kept) == len(self._before):
            # Stacked as soon as all are there: until then the views keep whole activations alive.
            self._after = torch.stack(self._kept)
        return torch.cat([before, x], 1)

    def commit(self, target: Tensor) -> None:
        """Write the last two frames of each convolution's input to the states ``target``."""
        assert self._after is not None
        self._kept.clear()
        shape = (self._pool.shape[0], len(target), *self._pool.shape[2:])
        self._pool.index_copy_(1, target, self._after.view(shape))


class CachedContext:
    """A ``LayerContext`` that reads and writes pages.

    Args:
        left: The context of the convolutions.
        pool: ``[layers, pages, frames, 2, heads, width]``.
        pages: i64 ``[batch, n]``, ordered by time; the last one is the block's own.
        mask: See :attr:`LayerContext.mask`.
    """

    def __init__(self, left: CachedConvContext, pool: Tensor, pages: Tensor, mask: Tensor) -> None:
        self.mask = mask
        self._left = left
        self._pool = pool
        self._own = pages[:, -1]
        self._pages = pages.flatten()
        self._layer = 0

    def pad_left(self, x: Tensor) -> Tensor:
        """As :meth:`LayerContext.pad_left`."""
        return self._left.pad_left(x)

    def update(self, kv: Tensor) -> Tensor:
        """As :meth:`LayerContext.update`: write the block's page, then read all pages."""
        layer = self._pool[self._layer]
        self._layer += 1
        layer.index_copy_(0, self._own, kv)
        return layer.index_select(0, self._pages).view(len(kv), -1, *kv.shape[2:])


class BatchContext:
    """The contexts of one step's batch, whose states ``commit`` writes back."""

    def __init__(
        self, context: FlowContext, lefts: Sequence[CachedConvContext], target: Tensor
    ) -> None:
        self.context = context
        self._lefts = lefts
        self._target = target

    def commit(self) -> None:
        """Write the rows' new states. Until then only pages have been written."""
        for left in self._lefts:
            left.commit(self._target)


class FlowCache:
    """The pools of pages and states.

    Args:
        sizes: The model's sizes.
        dtype: The model's dtype.
        device: The device; ``meta`` allocates nothing, to compute sizes.
        pages: How many pages to have besides the spare one.
        states: How many states to have besides the start state and the spare one.
    """

    def __init__(
        self, sizes: FlowSizes, dtype: torch.dtype, device: torch.device, pages: int, states: int
    ) -> None:
        pages, states = pages + 1, states + 2
        encoder, estimator = sizes.encoder, sizes.estimator
        rows = GUIDANCE_ROWS

        def pool(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        tokens, frames = encoder.chunk, estimator.chunk
        head = (2, encoder.heads, encoder.width // encoder.heads)
        blocks = estimator.mid_blocks + 2
        layers, convolutions = blocks * estimator.transformers, 2 * estimator.mid_blocks + 6
        width = (2, estimator.heads, estimator.head_width)
        self.tokens = pool(encoder.blocks, pages, tokens, *head)
        self.frames = pool(encoder.up_blocks, pages, frames, *head)
        self.steps = pool(sizes.steps, layers, pages * rows, frames, *width)
        self.left_tokens = pool(2, states, 1, LEFT_FRAMES, encoder.width)
        self.left_constants = pool(1, states, 1, LEFT_FRAMES, 3 * sizes.mel_bands)
        self.left_inputs = pool(sizes.steps, states, 1, LEFT_FRAMES, sizes.mel_bands)
        self.left_steps = pool(
            sizes.steps, convolutions, states, rows, LEFT_FRAMES, estimator.channels
        )

    @property
    def page_bytes(self) -> int:
        """Bytes of one page."""
        pools = (self.tokens, self.frames, self.steps)
        return sum(pool.nbytes for pool in pools) // self.tokens.shape[1]

    @property
    def state_bytes(self) -> int:
        """Bytes of one state."""
        pools = (self.left_tokens, self.left_constants, self.left_inputs, self.left_steps)
        return sum(pool.nbytes for pool in pools) // self.left_tokens.shape[1]

    def context(self, inputs: StepInputs) -> BatchContext:
        """The contexts of the rows of ``inputs``."""
        source, pages = inputs.source, inputs.pages
        constants = CachedConvContext(self.left_constants, source)
        state = CachedConvContext(self.left_inputs, source)
        tokens = CachedConvContext(self.left_tokens, source)
        steps = [CachedConvContext(pool, source) for pool in self.left_steps.unbind(0)]
        # At least one, in idle rows too: attention over no key at all is NaN.
        own = inputs.present.clamp(1, inputs.block_tokens)
        by_token = self._mask(inputs, own, inputs.block_tokens)
        by_frame = self._mask(inputs, 2 * own, 2 * inputs.block_tokens)
        # An utterance's guidance rows are adjacent, in pages and in the batch.
        rows = torch.arange(GUIDANCE_ROWS, device=pages.device)[:, None]
        row_pages = (pages[:, None] * GUIDANCE_ROWS + rows).flatten(0, 1)
        by_row = by_frame.repeat_interleave(GUIDANCE_ROWS, 0)
        context = FlowContext(
            tokens=CachedContext(tokens, self.tokens, pages, by_token),
            frames=CachedContext(tokens, self.frames, pages, by_frame),
            constants=constants,
            inputs=state,
            steps=[
                CachedContext(left, pool, row_pages, by_row)
                for left, pool in zip(steps, self.steps.unbind(0), strict=True)
            ],
        )
        return BatchContext(context, [constants, state, tokens, *steps], inputs.target)

    def _mask(self, inputs: StepInputs, own: Tensor, block: int) -> Tensor:
        """The mask ``[b, 1, 1, keys]`` of rows whose last page has ``own`` of ``block`` keys."""
        count = inputs.pages.shape[1]
        places = torch.arange(count * block, device=own.device)
        end = (count - 1) * block + own
        start = (count - inputs.held) * block
        visible = (places >= start[:, None]) & (places < end[:, None])
        return additive_mask(visible[:, None, None], self.steps.dtype)
