"""Renders utterances block by block from caches, many in one batch: each block is computed once.

A block is 25 tokens or 50 mel frames. Blocks are counted from the prompt's start, with the
utterance's tokens following the prompt's. Upstream's streaming mask has the same borders, so that a
block depends on no later frame but three tokens of look-ahead, and its keys and values stay valid.

    prompt = renderer.prompt(tokens, mel, speaker)
    rendering = renderer.begin(prompt)
    while block := rendering.next(tokens so far, ended):
        mel = renderer.render([block], 1)[0, block.first : block.frames]
    renderer.close(rendering)

:meth:`BlockRenderer.step` does all of the device's work: a function of static buffers that never
waits for the device, so that it can be captured in a CUDA graph.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from voicefleet.worker.engines.cosyvoice2.flow.block_manager import BlockManager
from voicefleet.worker.engines.cosyvoice2.flow.cache import FlowCache
from voicefleet.worker.engines.cosyvoice2.flow.model import NOISE_FRAMES, Flow
from voicefleet.worker.engines.cosyvoice2.flow.step_inputs import START_STATE, Row, StepInputs
from voicefleet.worker.engines.cosyvoice2.flow.utterance import Block, FlowPrompt, Rendering
from voicefleet.worker.engines.cosyvoice2.hyperparameters import FlowSizes


def page_bytes(sizes: FlowSizes, dtype: torch.dtype) -> int:
    """Bytes of a page, which caches one block of an utterance or prompt."""
    return FlowCache(sizes, dtype, torch.device("meta"), 1, 1).page_bytes


def state_bytes(sizes: FlowSizes, dtype: torch.dtype) -> int:
    """Bytes of a convolution state; each utterance has one, and each prompt of a block or more."""
    return FlowCache(sizes, dtype, torch.device("meta"), 1, 1).state_bytes


class BlockRenderer:
    """Renders blocks of many utterances in one batch. Not thread-safe.

    Args:
        flow: The model. It is optimised here if it was not.
        pages: How many blocks can be cached, prompts' included.
        states: How many utterances and prompts can be cached.
        max_blocks: The most blocks of an utterance, its prompt included.
        rows_apart: Compute the rows of a batch one by one. The default on the CPU, where a matrix
            product may round a row otherwise in another batch, and samples must not depend on it.
        page_buckets: Page table sizes, ascending; a step takes the smallest that fits. By default
            4, 8, 16 and so on (multiples of eight frames keep attention on its fast paths), and
            every size if ``rows_apart``.

    If ``run`` is set, it is called instead of ``step``, to replay a captured graph. It gets inputs
    that :meth:`inputs` made; its result is used before its next call.
    """

    def __init__(
        self,
        flow: Flow,
        *,
        pages: int,
        states: int,
        max_blocks: int,
        rows_apart: bool | None = None,
        page_buckets: Sequence[int] | None = None,
    ) -> None:
        flow.optimise()
        self.flow = flow
        self.sizes = flow.sizes
        self.rows_apart = flow.device.type == "cpu" if rows_apart is None else rows_apart
        self.run: Callable[[StepInputs], Tensor] | None = None
        self._cache = FlowCache(flow.sizes, flow.dtype, flow.device, pages, states)
        self._blocks = BlockManager(pages, states)
        self._inputs: dict[tuple[int, int], StepInputs] = {}
        self.max_blocks = min(max_blocks, NOISE_FRAMES // self.sizes.estimator.chunk)
        if page_buckets is None:
            every = range(1, self.max_blocks + 1)
            doubling = [4 << power for power in range(self.max_blocks.bit_length())]
            page_buckets = every if self.rows_apart else doubling
        # The last bucket holds the longest utterance.
        enough = next(i for i, size in enumerate(page_buckets) if size >= self.max_blocks)
        self.page_buckets = tuple(page_buckets[: enough + 1])
        chunk = self.sizes.encoder.chunk
        with torch.no_grad():
            self._positions = flow.encoder.positions(chunk, self.page_buckets[-1] * chunk)
        table = self.max_blocks * self.sizes.estimator.chunk
        self._noise = flow.noise[:table].view(self.max_blocks, -1, self.sizes.mel_bands)

    @property
    def free_pages(self) -> int:
        """How many more blocks can be cached."""
        return self._blocks.free_pages

    @property
    def free_states(self) -> int:
        """How many more utterances can begin with a cache."""
        return self._blocks.free_states

    def prompt(self, tokens: Sequence[int], mel: Tensor, speaker: Tensor) -> FlowPrompt:
        """Render a voice's prompt, for all its utterances.

        Blocks are cached if their look-ahead lies in the prompt too. The remaining tokens, 3 to 27
        of a long prompt, are rendered with each utterance's first block. The more tokens remain
        (10 to 20 are best), the fewer the first block has to wait for.

        Args:
            tokens: The prompt's speech tokens.
            mel: ``[2 * tokens, bands]``.
            speaker: ``[speaker width]``, not normalised.

        Raises:
            CacheFullError: The prompt has more blocks than pages are free.
            ValueError: The mel has not two frames for each token, or the prompt is too long.
        """
        if len(mel) != 2 * len(tokens):
            raise ValueError(f"{len(mel)} mel frames for {len(tokens)} tokens")
        chunk, ahead = self.sizes.encoder.chunk, self.sizes.encoder.lookahead
        blocks = max(0, len(tokens) - ahead) // chunk
        if blocks >= self.max_blocks:
            raise ValueError(
                f"a prompt of {blocks} blocks, of which an utterance may have {self.max_blocks}"
            )
        with torch.no_grad():
            mel = mel.to(self.flow.device, self.flow.dtype)
            voice = self.flow.speaker(speaker.to(self.flow.device)[None])[0]
        prompt = self._blocks.prompt(tokens, mel, voice, blocks)
        try:
            for index in range(blocks):
                start = index * chunk
                row = Row(
                    tokens=prompt.tokens[start : start + chunk + ahead],
                    index=index,
                    source=prompt.state if index else START_STATE,
                    target=prompt.state,
                    pages=prompt.pages[: index + 1],
                    speaker=voice,
                    prompt=mel[2 * start : 2 * (start + chunk)],
                )
                self._step([row], 1)
        except BaseException:
            self.release(prompt)
            raise
        return prompt

    def release(self, prompt: FlowPrompt) -> None:
        """Free a prompt's pages, as soon as no utterance uses it any more."""
        self._blocks.release(prompt)

    def begin(self, prompt: FlowPrompt, *, cached: bool = True) -> Rendering | None:
        """Begin an utterance.

        Args:
            prompt: The voice's prompt.
            cached: Cache its blocks. Otherwise only ``recompute`` can render them.

        Returns:
            None if ``cached`` and no page or no state is free.

        Raises:
            ValueError: The prompt was released.
        """
        if prompt.released:
            raise ValueError("the prompt was released")
        return self._blocks.begin(prompt, self.sizes, cached=cached)

    def close(self, rendering: Rendering) -> None:
        """Free an utterance's pages and state. Safe to call twice."""
        self._blocks.close(rendering)

    def render(self, blocks: Sequence[Block], batch: int) -> Tensor:
        """Render the next block of each of several utterances.

        Args:
            blocks: At most ``batch``, each the next block of another rendering.
            batch: How many rows the step has; further rows are idle.

        Returns:
            Float32 ``[len(blocks), 50, bands]``, on the device. The utterance's frames in row i are
            ``blocks[i].first`` to ``blocks[i].frames``.

        Raises:
            CacheFullError: There are fewer free pages than blocks. Nothing has changed.
            ValueError: A block is not the next one, spans several, has no cache or lies beyond
                ``max_blocks``.
        """
        if not 0 < len(blocks) <= batch:
            raise ValueError(f"{len(blocks)} blocks in a batch of {batch}")
        if len({id(block.rendering) for block in blocks}) < len(blocks):
            raise ValueError("two blocks of one utterance")
        for block in blocks:
            self._check(block)
            if block.rendering.state is None or block.count != 1:
                raise ValueError("several blocks, or an utterance without a cache")
        taken = self._blocks.take_pages(len(blocks))
        try:
            rows = [self._row(block, page) for block, page in zip(blocks, taken, strict=True)]
            if self.rows_apart:
                mel = torch.cat([self._step([row], 1) for row in rows])
            else:
                mel = self._step(rows, batch)
        except BaseException:
            self._blocks.give_back(taken)
            raise
        for block, page in zip(blocks, taken, strict=True):
            block.rendering.pages.append(page)
            block.rendering.done += 1
        return mel

    def recompute(self, blocks: Sequence[Block]) -> list[Tensor]:
        """Render blocks without a cache, from the utterances' start, with the same result.

        It costs more the longer the utterance is. An utterance that was cached frees its pages and
        its state, and goes on without.

        Args:
            blocks: Each the next one of another rendering. It may span several blocks, which makes
                up for the cost.

        Returns:
            For each block the utterance's own frames, float32 ``[frames - first, bands]``.

        Raises:
            ValueError: A block is not the next one, or lies beyond ``max_blocks``.
        """
        for block in blocks:
            self._check(block)
        if self.rows_apart:
            mels = [self._recomputed([block])[0] for block in blocks]
        else:
            mels = self._recomputed(blocks)
        for block in blocks:
            self._blocks.uncache(block.rendering)
            block.rendering.done += block.count
        return mels

    def inputs(self, batch: int, pages: int) -> StepInputs:
        """The static buffers of a step of ``batch`` rows with ``pages`` pages (a bucket) each."""
        if (batch, pages) not in self._inputs:
            encoder, device, dtype = self.sizes.encoder, self.flow.device, self.flow.dtype
            chunk, ahead, bands = encoder.chunk, encoder.lookahead, self.sizes.mel_bands
            # The part of each layer's table for the nearest keys; half as many before upsampling.
            tables = self._positions
            rates = [1] * encoder.blocks + [2] * encoder.up_blocks
            nearest = [rate * chunk * (pages + 1) for rate in rates]
            columns = chunk + ahead + StepInputs.FIXED + pages
            made = StepInputs(
                integers=torch.zeros(batch, columns, dtype=torch.long, device=device),
                speaker=torch.zeros(batch, bands, dtype=dtype, device=device),
                prompt=torch.zeros(batch, 2 * chunk, bands, dtype=dtype, device=device),
                positions=[table[:, -rows:] for table, rows in zip(tables, nearest, strict=True)],
                block_tokens=chunk,
                lookahead=ahead,
            )
            made.make_idle()
            self._inputs[batch, pages] = made
        return self._inputs[batch, pages]

    @torch.no_grad()
    def step(self, inputs: StepInputs) -> Tensor:
        """Compute one block of every row: encoder and solver, with caches updated in place.

        Fresh inputs are idle: a step on them, as in a capture, changes no utterance's cache.

        Returns:
            Float32 ``[batch, 50, bands]``.
        """
        cached = self._cache.context(inputs)
        tokens = inputs.tokens
        present = torch.arange(tokens.shape[1], device=tokens.device) < inputs.present[:, None]
        mu = self.flow.encode(tokens, present, inputs.positions, cached.context)
        noise = self._noise.index_select(0, inputs.index)
        mel = self.flow.decoder(noise, mu, inputs.speaker, inputs.prompt, cached.context)
        cached.commit()
        return mel

    def _step(self, rows: Sequence[Row], batch: int) -> Tensor:
        """Fill the buffers and run: float32 ``[len(rows), 50, bands]``."""
        most = max(len(row.pages) for row in rows)
        inputs = self.inputs(batch, next(size for size in self.page_buckets if size >= most))
        inputs.fill(rows)
        run = self.run or self.step
        return run(inputs)[: len(rows)].clone()

    def _row(self, block: Block, page: int) -> Row:
        rendering, prompt = block.rendering, block.rendering.prompt
        assert rendering.state is not None
        tail = prompt.tokens[block.start : block.stop + self.sizes.encoder.lookahead]
        skip = max(0, block.start - len(prompt.tokens))
        return Row(
            tokens=[*tail, *block.tokens[skip:]],
            index=block.index,
            source=rendering.state if rendering.pages else prompt.state,
            target=rendering.state,
            pages=[*prompt.pages, *rendering.pages, page],
            speaker=prompt.speaker,
            prompt=prompt.mel[2 * block.start : 2 * block.stop],
        )

    @torch.no_grad()
    def _recomputed(self, blocks: Sequence[Block]) -> list[Tensor]:
        device, ahead = self.flow.device, self.sizes.encoder.lookahead
        size = max(block.stop for block in blocks) + ahead
        rows = [[*block.rendering.prompt.tokens, *block.tokens] for block in blocks]
        rows = [row[: block.stop + ahead] for row, block in zip(rows, blocks, strict=True)]
        prompts = [block.rendering.prompt for block in blocks]
        mels = [p.mel[: 2 * block.stop] for p, block in zip(prompts, blocks, strict=True)]
        rendered = self.flow.render_own(
            torch.tensor([[*row, *[0] * (size - len(row))] for row in rows], device=device),
            torch.tensor([len(row) for row in rows], device=device),
            torch.tensor([block.stop for block in blocks], device=device),
            torch.nn.utils.rnn.pad_sequence(mels, batch_first=True),
            torch.stack([p.speaker for p in prompts]),
            streaming=True,
        )
        return [
            mel[2 * block.start + block.first : 2 * block.stop]
            for mel, block in zip(rendered.unbind(0), blocks, strict=True)
        ]

    def _check(self, block: Block) -> None:
        rendering = block.rendering
        if rendering.closed or block.index != rendering.done:
            raise ValueError("the block is not the next one of its utterance")
        if block.index + block.count > self.max_blocks:
            raise ValueError(f"an utterance of more than {self.max_blocks} blocks")
