"""Renders utterances block by block from caches: each block is computed once, many at a time.

A block is 25 tokens, 50 mel frames, at a place that is a multiple of that in the prompt and the
utterance as one. Upstream's streaming mask ends at the same places, so that a block depends on
nothing that comes later but three tokens of look-ahead, and what was computed for one stays good.

    prompt = renderer.prompt(tokens, mel, speaker)
    rendering = renderer.begin(prompt)
    while block := rendering.next(tokens so far, ended):
        mel = renderer.render([block], 1)[0, block.first : block.frames]
    renderer.close(rendering)

:meth:`BlockRenderer.step` is all of the device's work: a function of static buffers that never
waits for the device, to be captured in a graph.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from voicefleet.worker.engines.cosyvoice2.flow.cache import (
    SPARE_PAGE,
    SPARE_STATE,
    START_STATE,
    FlowCache,
    StepInputs,
)
from voicefleet.worker.engines.cosyvoice2.flow.model import NOISE_FRAMES, Flow
from voicefleet.worker.engines.cosyvoice2.flow.utterance import Block, FlowPrompt, Rendering
from voicefleet.worker.engines.cosyvoice2.hyperparameters import FlowSizes


class CacheFullError(RuntimeError):
    """No page or no state is free."""


@dataclass(frozen=True)
class _Row:
    """What one row of a step is told."""

    tokens: Sequence[int]
    index: int
    source: int
    target: int
    pages: Sequence[int]
    speaker: Tensor
    prompt: Tensor


_IDLE = _Row(
    tokens=(0,),
    index=0,
    source=START_STATE,
    target=SPARE_STATE,
    pages=(SPARE_PAGE,),
    speaker=torch.empty(0),
    prompt=torch.empty(0),
)


def page_bytes(sizes: FlowSizes, dtype: torch.dtype) -> int:
    """Bytes of one page, which is one block of one utterance or prompt."""
    return FlowCache(sizes, dtype, torch.device("meta"), 1, 1).page_bytes


def state_bytes(sizes: FlowSizes, dtype: torch.dtype) -> int:
    """Bytes of one state; each utterance has one, and each prompt of a block or more."""
    return FlowCache(sizes, dtype, torch.device("meta"), 1, 1).state_bytes


class BlockRenderer:
    """Renders blocks of many utterances at once. Not for use from several threads.

    Args:
        flow: The model, in place. It is optimised here if it was not.
        pages: How many blocks can be remembered, prompts included.
        states: How many utterances and prompts.
        max_blocks: The most blocks that an utterance can have, its prompt included.
        rows_apart: Compute rows one by one, each as if it were alone. Products on the CPU round
            otherwise in other company, and samples must not depend on it; there it is the default.
        page_buckets: How many pages the rows of a step can have, rising; a step takes the smallest
            that does. By default 4, 8, 16 and so on (whole numbers of eight frames keep attention
            on its fast paths), and every count where rows are apart.

    ``run``, where it is set, is called instead of ``step``, to replay a captured graph. It gets one
    of the inputs that :meth:`inputs` made, and what it returns is used before its next call.
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
        self._pages = list(range(pages, SPARE_PAGE, -1))
        self._states = list(range(states + SPARE_STATE, SPARE_STATE, -1))
        self._inputs: dict[tuple[int, int], StepInputs] = {}
        self.max_blocks = min(max_blocks, NOISE_FRAMES // self.sizes.estimator.chunk)
        if page_buckets is None:
            every = range(1, self.max_blocks + 1)
            doubling = [4 << power for power in range(self.max_blocks.bit_length())]
            page_buckets = every if self.rows_apart else doubling
        # The last one has room for all.
        enough = next(i for i, size in enumerate(page_buckets) if size >= self.max_blocks)
        self.page_buckets = tuple(page_buckets[: enough + 1])
        chunk = self.sizes.encoder.chunk
        with torch.no_grad():
            self._positions = flow.encoder.positions(chunk, self.page_buckets[-1] * chunk)
        table = self.max_blocks * self.sizes.estimator.chunk
        self._noise = flow.noise[:table].view(self.max_blocks, -1, self.sizes.mel_bands)

    @property
    def free_pages(self) -> int:
        """Blocks that can still be remembered."""
        return len(self._pages)

    @property
    def free_states(self) -> int:
        """Utterances that can still begin."""
        return len(self._states)

    def prompt(self, tokens: Sequence[int], mel: Tensor, speaker: Tensor) -> FlowPrompt:
        """Compute a voice's prompt, to be shared by all that it says.

        Those blocks are kept whose look-ahead is the prompt's own. What is left over, 3 to 27
        tokens of a long prompt, is computed with each utterance's first.
        A prompt of some 10 to 20 tokens over a multiple of 25 lets a voice answer soonest: the
        first block waits for as many tokens less.

        Args:
            tokens: The prompt's speech tokens.
            mel: ``[2 * tokens, bands]``.
            speaker: ``[speaker width]``, not normalised.

        Raises:
            CacheFullError: The prompt has more blocks than pages are free.
            ValueError: The mel is not two frames a token, or the prompt leaves no block free.
        """
        if len(mel) != 2 * len(tokens):
            raise ValueError(f"{len(mel)} mel frames for {len(tokens)} tokens")
        chunk, ahead = self.sizes.encoder.chunk, self.sizes.encoder.lookahead
        blocks = max(0, len(tokens) - ahead) // chunk
        if blocks >= self.max_blocks:
            raise ValueError(
                f"a prompt of {blocks} blocks, of which an utterance may have {self.max_blocks}"
            )
        if blocks > self.free_pages or (blocks and not self.free_states):
            raise CacheFullError(f"no room for a prompt of {blocks} blocks")
        with torch.no_grad():
            mel = mel.to(self.flow.device, self.flow.dtype)
            voice = self.flow.speaker(speaker.to(self.flow.device)[None])[0]
        pages = tuple(self._pages.pop() for _ in range(blocks))
        state = self._states.pop() if blocks else START_STATE
        prompt = FlowPrompt(tuple(tokens), mel, voice, pages, state)
        try:
            for index in range(blocks):
                start = index * chunk
                row = _Row(
                    tokens=prompt.tokens[start : start + chunk + ahead],
                    index=index,
                    source=state if index else START_STATE,
                    target=state,
                    pages=pages[: index + 1],
                    speaker=voice,
                    prompt=mel[2 * start : 2 * (start + chunk)],
                )
                self._step([row], 1)
        except BaseException:
            self.release(prompt)
            raise
        return prompt

    def release(self, prompt: FlowPrompt) -> None:
        """Give a prompt's pages back, as soon as nobody speaks with it any more."""
        prompt.released = True
        self._drop(prompt)

    def begin(self, prompt: FlowPrompt, *, cached: bool = True) -> Rendering | None:
        """Begin an utterance.

        Args:
            prompt: Its voice's.
            cached: Keep its blocks. Without, it takes no room and is always computed anew.

        Returns:
            None if it should be cached and no page or no state is free.

        Raises:
            ValueError: The prompt was released.
        """
        if prompt.released:
            raise ValueError("the prompt was released")
        state = None
        if cached:
            if not self._pages or not self._states:
                return None
            state = self._states.pop()
        prompt.users += 1
        return Rendering(prompt, self.sizes, len(prompt.pages), state)

    def close(self, rendering: Rendering) -> None:
        """Give an utterance's pages and state back. Safe to call twice."""
        if rendering.closed:
            return
        rendering.closed = True
        self._forget(rendering)
        rendering.prompt.users -= 1
        self._drop(rendering.prompt)

    def render(self, blocks: Sequence[Block], batch: int) -> Tensor:
        """Compute the next block of each of several utterances.

        Args:
            blocks: At most ``batch``, each of another rendering, each the next one of it.
            batch: How many rows the step has; rows left over compute nothing of use.

        Returns:
            Float32 ``[len(blocks), 50, bands]``, on the device. Of row i the frames
            ``blocks[i].first`` to ``blocks[i].frames`` are the utterance's.

        Raises:
            CacheFullError: There are fewer free pages than blocks. Nothing has changed.
            ValueError: A block is not the next one, is several, has no cache or is too far on.
        """
        if not 0 < len(blocks) <= batch:
            raise ValueError(f"{len(blocks)} blocks in a batch of {batch}")
        if len({id(block.rendering) for block in blocks}) < len(blocks):
            raise ValueError("two blocks of one utterance")
        for block in blocks:
            self._check(block)
            if block.rendering.state is None or block.count != 1:
                raise ValueError("several blocks, or an utterance without a cache")
        if len(blocks) > self.free_pages:
            raise CacheFullError(f"{len(blocks)} blocks, {self.free_pages} free pages")
        taken = [self._pages.pop() for _ in blocks]
        try:
            rows = [self._row(block, page) for block, page in zip(blocks, taken, strict=True)]
            if self.rows_apart:
                mel = torch.cat([self._step([row], 1) for row in rows])
            else:
                mel = self._step(rows, batch)
        except BaseException:
            self._pages.extend(taken)
            raise
        for block, page in zip(blocks, taken, strict=True):
            block.rendering.pages.append(page)
            block.rendering.done += 1
        return mel

    def recompute(self, blocks: Sequence[Block]) -> list[Tensor]:
        """Compute blocks without a cache, from their utterances' beginning: dear, but just as good.

        An utterance that has been cached so far gives its pages and its state back, and goes on
        without.

        Args:
            blocks: Each of another rendering, each the next of it. Hops of several at once make up
                for the price.

        Returns:
            For each block the utterance's own frames, float32 ``[frames - first, bands]``.

        Raises:
            ValueError: A block is not the next one, or too far on.
        """
        for block in blocks:
            self._check(block)
        if self.rows_apart:
            mels = [self._whole([block])[0] for block in blocks]
        else:
            mels = self._whole(blocks)
        for block in blocks:
            self._forget(block.rendering)
            block.rendering.done += block.count
        return mels

    def inputs(self, batch: int, pages: int) -> StepInputs:
        """The buffers of a step of ``batch`` rows with up to ``pages`` pages (a bucket) each."""
        if (batch, pages) not in self._inputs:
            encoder, device, dtype = self.sizes.encoder, self.flow.device, self.flow.dtype
            chunk, ahead, bands = encoder.chunk, encoder.lookahead, self.sizes.mel_bands
            # Of each layer's table the part for the nearest keys; half as many before upsampling.
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
        """One block of every row: encoder and solver, reading and writing caches in place.

        Fresh inputs are idle: a step on them, as in capturing a graph, touches nobody's cache.

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

    def _step(self, rows: Sequence[_Row], batch: int) -> Tensor:
        """Fill the buffers and run: float32 ``[len(rows), 50, bands]``."""
        most = max(len(row.pages) for row in rows)
        inputs = self.inputs(batch, next(size for size in self.page_buckets if size >= most))
        pages = inputs.pages.shape[1]
        idle = [self._integers(_IDLE, pages)] * (batch - len(rows))
        integers = torch.tensor([self._integers(row, pages) for row in rows] + idle)
        if inputs.integers.is_cuda:
            integers = integers.pin_memory()
        inputs.integers.copy_(integers, non_blocking=True)
        torch.stack([row.speaker for row in rows], out=inputs.speaker[: len(rows)])
        inputs.prompt.zero_()
        for place, row in enumerate(rows):
            if len(row.prompt):
                inputs.prompt[place, : len(row.prompt)].copy_(row.prompt)
        run = self.run or self.step
        return run(inputs)[: len(rows)].clone()

    def _integers(self, row: _Row, pages: int) -> list[int]:
        width = self.sizes.encoder.chunk + self.sizes.encoder.lookahead
        tokens = [*row.tokens, *[0] * (width - len(row.tokens))]
        held = [*[SPARE_PAGE] * (pages - len(row.pages)), *row.pages]
        fixed = (len(row.tokens), row.index, len(row.pages), row.source, row.target)
        return [*tokens, *fixed, *held]

    def _row(self, block: Block, page: int) -> _Row:
        rendering, prompt = block.rendering, block.rendering.prompt
        assert rendering.state is not None
        spoken = block.tokens
        tail = prompt.tokens[block.start : block.stop + self.sizes.encoder.lookahead]
        skip = max(0, block.start - len(prompt.tokens))
        return _Row(
            tokens=[*tail, *spoken[skip:]],
            index=block.index,
            source=rendering.state if rendering.pages else prompt.state,
            target=rendering.state,
            pages=[*prompt.pages, *rendering.pages, page],
            speaker=prompt.speaker,
            prompt=prompt.mel[2 * block.start : 2 * block.stop],
        )

    @torch.no_grad()
    def _whole(self, blocks: Sequence[Block]) -> list[Tensor]:
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

    def _forget(self, rendering: Rendering) -> None:
        if rendering.state is not None:
            self._pages.extend(rendering.pages)
            self._states.append(rendering.state)
            rendering.pages, rendering.state = [], None

    def _drop(self, prompt: FlowPrompt) -> None:
        if prompt.released and not prompt.users and prompt.state != SPARE_STATE:
            self._pages.extend(prompt.pages)
            if prompt.state != START_STATE:
                self._states.append(prompt.state)
            # Dropped once only.
            prompt.pages, prompt.state = (), SPARE_STATE
