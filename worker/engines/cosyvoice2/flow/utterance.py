"""Utterances on their way through the flow, and the blocks they are cut into."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from voicefleet.worker.engines.cosyvoice2.hyperparameters import FlowSizes


@dataclass(eq=False)
class FlowPrompt:
    """A voice's prompt: its tokens, its mel, and the pages of its whole blocks.

    ``mel`` is ``[2 * tokens, bands]`` and ``speaker`` ``[bands]``, both on the device.
    """

    tokens: tuple[int, ...]
    mel: Tensor
    speaker: Tensor
    pages: tuple[int, ...]
    state: int
    users: int = 0
    released: bool = False


@dataclass(eq=False)
class Rendering:
    """An utterance on its way. ``done`` counts its blocks, the prompt's whole ones included.

    Without a cache (``state`` is None) its blocks can only be computed by ``recompute``.
    """

    prompt: FlowPrompt
    sizes: FlowSizes
    done: int
    state: int | None
    pages: list[int] = field(default_factory=list[int])
    closed: bool = False

    @property
    def needed(self) -> int:
        """How many of the utterance's tokens the next block waits for, unless they end before."""
        encoder = self.sizes.encoder
        return (self.done + 1) * encoder.chunk + encoder.lookahead - len(self.prompt.tokens)

    def next(self, tokens: Sequence[int], ended: bool, count: int = 1) -> "Block | None":
        """The next ``count`` blocks as one.

        Args:
            tokens: All of the utterance's so far.
            ended: No more will come.
            count: More than one is for ``recompute`` only. The utterance's end may cut it short.

        Returns:
            None if tokens are missing, or, where they have ended, none is left to render.
        """
        encoder, prompt = self.sizes.encoder, len(self.prompt.tokens)
        total = prompt + len(tokens)
        start = self.done * encoder.chunk
        stop = start + count * encoder.chunk
        seen = stop + encoder.lookahead
        if ended:
            if not tokens or start >= total:
                return None
            stop, seen = min(stop, total), min(seen, total)
        elif seen > total:
            return None
        return Block(self, self.done, start, stop, tuple(tokens[: max(0, seen - prompt)]))


@dataclass(frozen=True, eq=False)
class Block:
    """One block to render, or several in a row.

    ``index`` is its place in blocks, ``start`` and ``stop`` in tokens, from the prompt's start.
    ``tokens`` are the utterance's up to the block's end and the look-ahead behind it.
    """

    rendering: Rendering
    index: int
    start: int
    stop: int
    tokens: tuple[int, ...]

    @property
    def first(self) -> int:
        """The frames at its front that belong to the prompt."""
        return 2 * min(
            max(len(self.rendering.prompt.tokens) - self.start, 0), self.stop - self.start
        )

    @property
    def frames(self) -> int:
        """How many frames it has, those of the prompt included."""
        return 2 * (self.stop - self.start)

    @property
    def count(self) -> int:
        """How many blocks it is."""
        return -(-(self.stop - self.start) // self.rendering.sizes.encoder.chunk)
