"""An utterance's progress through the flow, and the blocks it is cut into."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from voicefleet.worker.engines.cosyvoice2.hyperparameters import FlowSizes


@dataclass(eq=False)
class FlowPrompt:
    """A voice's prompt: its tokens, its mel, and the cache pages of its complete blocks.

    ``mel`` is ``[2 * tokens, bands]`` and ``speaker`` ``[bands]``, both on the device. ``state`` is
    the index of its convolution state; ``users`` counts the utterances that read its pages.
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
    """An utterance in progress. ``done`` counts rendered blocks, those of the prompt included.

    Without a cache (``state`` is None) only ``BlockRenderer.recompute`` can render its blocks.
    """

    prompt: FlowPrompt
    sizes: FlowSizes
    done: int
    state: int | None
    pages: list[int] = field(default_factory=list[int])
    closed: bool = False

    @property
    def needed(self) -> int:
        """How many of the utterance's tokens the next block needs, unless decoding ends earlier."""
        encoder = self.sizes.encoder
        return (self.done + 1) * encoder.chunk + encoder.lookahead - len(self.prompt.tokens)

    def next(self, tokens: Sequence[int], ended: bool, count: int = 1) -> "Block | None":
        """The next ``count`` blocks as one.

        Args:
            tokens: All tokens of the utterance so far.
            ended: Whether no more will come.
            count: More than 1 is for ``recompute`` only. Fewer are returned at the end.

        Returns:
            None if tokens are missing or, once ``ended``, everything was rendered.
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
    """One block to render, or several consecutive ones.

    ``index`` counts blocks, ``start`` and ``stop`` count tokens, all from the prompt's start.
    ``tokens`` are the utterance's tokens up to the block's end and its look-ahead.
    """

    rendering: Rendering
    index: int
    start: int
    stop: int
    tokens: tuple[int, ...]

    @property
    def first(self) -> int:
        """How many of its first frames belong to the prompt."""
        return 2 * min(
            max(len(self.rendering.prompt.tokens) - self.start, 0), self.stop - self.start
        )

    @property
    def frames(self) -> int:
        """How many frames it has, the prompt's included."""
        return 2 * (self.stop - self.start)

    @property
    def count(self) -> int:
        """How many blocks it spans."""
        return -(-(self.stop - self.start) // self.rendering.sizes.encoder.chunk)
