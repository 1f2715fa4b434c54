"""Allocates the flow cache's pages and states to prompts and utterances."""

from collections.abc import Sequence

from torch import Tensor

from voicefleet.worker.engines.cosyvoice2.flow.step_inputs import (
    SPARE_PAGE,
    SPARE_STATE,
    START_STATE,
)
from voicefleet.worker.engines.cosyvoice2.flow.utterance import FlowPrompt, Rendering
from voicefleet.worker.engines.cosyvoice2.hyperparameters import FlowSizes


class CacheFullError(RuntimeError):
    """No page or no state is free."""


class BlockManager:
    """Hands out pages and states, and takes them back once no utterance uses them.

    Args:
        pages: How many pages there are besides the spare one.
        states: How many states there are besides the start state and the spare one.
    """

    def __init__(self, pages: int, states: int) -> None:
        self._pages = list(range(pages, SPARE_PAGE, -1))
        self._states = list(range(states + SPARE_STATE, SPARE_STATE, -1))

    @property
    def free_pages(self) -> int:
        """How many pages are free."""
        return len(self._pages)

    @property
    def free_states(self) -> int:
        """How many states are free."""
        return len(self._states)

    def take_pages(self, count: int) -> list[int]:
        """Take ``count`` pages. Raises ``CacheFullError``: there are fewer; none is taken."""
        if count > self.free_pages:
            raise CacheFullError(f"{count} blocks, {self.free_pages} free pages")
        return [self._pages.pop() for _ in range(count)]

    def give_back(self, pages: Sequence[int]) -> None:
        """Take back pages that nothing was written to."""
        self._pages.extend(pages)

    def prompt(
        self, tokens: Sequence[int], mel: Tensor, speaker: Tensor, blocks: int
    ) -> FlowPrompt:
        """Make a prompt with pages for ``blocks`` blocks, and a state if there are any.

        Raises:
            CacheFullError: There are too few pages, or no state.
        """
        if blocks > self.free_pages or (blocks and not self.free_states):
            raise CacheFullError(f"no room for a prompt of {blocks} blocks")
        pages = tuple(self.take_pages(blocks))
        state = self._states.pop() if blocks else START_STATE
        return FlowPrompt(tuple(tokens), mel, speaker, pages, state)

    def release(self, prompt: FlowPrompt) -> None:
        """Free a prompt's pages and state, as soon as no utterance uses them."""
        prompt.released = True
        self._free_unused(prompt)

    def begin(self, prompt: FlowPrompt, sizes: FlowSizes, *, cached: bool) -> Rendering | None:
        """Begin an utterance. Returns ``None`` if it is ``cached`` and no page or state is free."""
        state = None
        if cached:
            if not self._pages or not self._states:
                return None
            state = self._states.pop()
        prompt.users += 1
        return Rendering(prompt, sizes, len(prompt.pages), state)

    def close(self, rendering: Rendering) -> None:
        """Free an utterance's pages and state. Safe to call twice."""
        if rendering.closed:
            return
        rendering.closed = True
        self.uncache(rendering)
        rendering.prompt.users -= 1
        self._free_unused(rendering.prompt)

    def uncache(self, rendering: Rendering) -> None:
        """Free an utterance's pages and state; it goes on without a cache."""
        if rendering.state is not None:
            self._pages.extend(rendering.pages)
            self._states.append(rendering.state)
            rendering.pages, rendering.state = [], None

    def _free_unused(self, prompt: FlowPrompt) -> None:
        if prompt.released and not prompt.users and prompt.state != SPARE_STATE:
            self._pages.extend(prompt.pages)
            if prompt.state != START_STATE:
                self._states.append(prompt.state)
            # The spare state marks it as freed.
            prompt.pages, prompt.state = (), SPARE_STATE
