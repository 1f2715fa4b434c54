"""The inputs of one step of the flow over a batch of blocks, in static buffers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SPARE_PAGE = 0
"""Fills page tables of rows with fewer pages; idle rows write to it."""

START_STATE = 0
"""The state before an utterance's start: all zeros, never written."""

SPARE_STATE = 1
"""Idle rows write to it."""


@dataclass(frozen=True)
class Row:
    """One block's inputs.

    Attributes:
        tokens: Its tokens and its look-ahead, as far as they are known.
        index: The block's index, counted from the prompt's start.
        source: The state to read.
        target: The state to write.
        pages: The pages of all blocks up to this one, its own last.
        speaker: ``[bands]``.
        prompt: The prompt's mel frames in this block, ``[frames, bands]``; perhaps none.
    """

    tokens: Sequence[int]
    index: int
    source: int
    target: int
    pages: Sequence[int]
    speaker: Tensor
    prompt: Tensor


_IDLE = Row(
    tokens=(0,),
    index=0,
    source=START_STATE,
    target=SPARE_STATE,
    pages=(SPARE_PAGE,),
    speaker=torch.empty(0),
    prompt=torch.empty(0),
)


@dataclass(frozen=True)
class StepInputs:
    """The inputs of one step, in buffers of fixed address.

    ``integers`` is i64 ``[batch, n]``. The properties name its columns, so that one copy brings all
    of them to the device. ``speaker`` is ``[batch, bands]``, ``prompt`` the prompt's mel
    ``[batch, frames, bands]`` (zeros after the prompt), ``positions`` the encoder layers' position
    embeddings by distance. A row's pages are right-aligned, its block's own page last, so that
    distances to earlier frames are the same for all rows.
    """

    integers: Tensor
    speaker: Tensor
    prompt: Tensor
    positions: list[Tensor]
    block_tokens: int
    lookahead: int

    FIXED = 5
    """How many columns there are besides tokens and pages."""

    @property
    def batch(self) -> int:
        """How many rows there are."""
        return len(self.integers)

    @property
    def tokens(self) -> Tensor:
        """The block's tokens and the look-ahead, ``[batch, block + lookahead]``."""
        return self.integers[:, : self.block_tokens + self.lookahead]

    @property
    def present(self) -> Tensor:
        """How many of ``tokens`` are known, ``[batch]``."""
        return self._column(0)

    @property
    def index(self) -> Tensor:
        """The block's index, counted from the prompt's start, ``[batch]``."""
        return self._column(1)

    @property
    def held(self) -> Tensor:
        """How many pages the row has, its block's own included, ``[batch]``."""
        return self._column(2)

    @property
    def source(self) -> Tensor:
        """The index of the state to read, ``[batch]``."""
        return self._column(3)

    @property
    def target(self) -> Tensor:
        """The index of the state to write, ``[batch]``."""
        return self._column(4)

    @property
    def pages(self) -> Tensor:
        """Page indices, right-aligned, ``[batch, pages]``."""
        return self.integers[:, self.block_tokens + self.lookahead + self.FIXED :]

    def make_idle(self) -> None:
        """Make all rows idle: they write to the spare page and the spare state."""
        self.integers.zero_()
        self.held.fill_(1)
        self.target.fill_(SPARE_STATE)

    def fill(self, rows: Sequence[Row]) -> None:
        """Write the rows of a batch; further rows are idle. Nothing is waited for."""
        idle = [self._packed(_IDLE)] * (self.batch - len(rows))
        integers = torch.tensor([self._packed(row) for row in rows] + idle)
        if self.integers.is_cuda:
            integers = integers.pin_memory()
        self.integers.copy_(integers, non_blocking=True)
        torch.stack([row.speaker for row in rows], out=self.speaker[: len(rows)])
        self.prompt.zero_()
        for place, row in enumerate(rows):
            if len(row.prompt):
                self.prompt[place, : len(row.prompt)].copy_(row.prompt)

    def _packed(self, row: Row) -> list[int]:
        """The columns of ``integers`` for a row."""
        width, pages = self.block_tokens + self.lookahead, self.pages.shape[1]
        tokens = [*row.tokens, *[0] * (width - len(row.tokens))]
        held = [*[SPARE_PAGE] * (pages - len(row.pages)), *row.pages]
        fixed = (len(row.tokens), row.index, len(row.pages), row.source, row.target)
        return [*tokens, *fixed, *held]

    def _column(self, index: int) -> Tensor:
        return self.integers[:, self.block_tokens + self.lookahead + index]
