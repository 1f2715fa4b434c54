"""The interfaces that backends implement: speech token decoding, and the flow's estimator."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from voicefleet.worker.engines.cosyvoice2.flow.context import ConvContext, LayerContext
from voicefleet.worker.engines.cosyvoice2.lm.language_model import LanguageModel


class TokenSource(Protocol):
    """Decodes speech tokens in ``slots`` slots at once. Natively ``decoding.Decoder``.

    ``model`` makes the embeddings to prefill.
    """

    @property
    def model(self) -> LanguageModel: ...  # noqa: D102

    @property
    def slots(self) -> int: ...  # noqa: D102

    def begin(self, slot: int, uniform: NDArray[np.float32]) -> None:
        """Reset a slot for a new utterance. ``uniform`` ``[tokens, 2]``: its random draws."""
        ...

    def stop(self, slot: int) -> None:
        """Stop decoding in a slot until its next prefill."""
        ...

    def constrain(
        self, slot: int, *, min_tokens: int, banned: Sequence[bool], fill_at: int = -1
    ) -> None:
        """Ban control tokens until a slot has ``min_tokens``; force a fill token at ``fill_at``."""
        ...

    def count(self, slot: int) -> int:
        """How many tokens of a slot's utterance were collected, control tokens included."""
        ...

    def prefill(self, slot: int, embeddings: Tensor) -> None:
        """Append embeddings ``[n, width]`` to a slot; the next token follows them."""
        ...

    def multi_step(self, limits: Mapping[int, int], steps: int) -> None:
        """Start ``steps`` decode steps; each slot stops at its limit of tokens."""
        ...

    def collect(self) -> dict[int, tuple[list[int], bool]]:
        """Wait for the new tokens of each slot, and whether a control token stopped it."""
        ...

    def warm_up(self, context_len: int) -> None:
        """Prepare for sequences of up to ``context_len`` positions."""
        ...

    def dry_run(self) -> None:
        """Run one step of all slots without effect, to time it."""
        ...


class StepEstimator(Protocol):
    """Computes the velocity of mel frames at one Euler step. Natively ``estimator.Estimator``."""

    def constants(
        self, mu: Tensor, speaker: Tensor, prompt: Tensor, context: ConvContext
    ) -> Tensor:
        """Compute the inputs of :meth:`__call__` that are the same for all Euler steps."""
        ...

    def __call__(
        self, x: Tensor, constants: Tensor, step: int, inputs: ConvContext, context: LayerContext
    ) -> Tensor:
        """``x`` ``[b, t, bands]`` -> ``[b, 2, t, bands]``: with the conditions, and without."""
        ...
