"""Where backends plug in: the source of speech tokens, and the flow's estimator."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from voicefleet.worker.engines.cosyvoice2.flow.context import ConvContext, LayerContext
from voicefleet.worker.engines.cosyvoice2.lm.language_model import LanguageModel


class TokenSource(Protocol):
    """Speech tokens of ``slots`` sessions side by side. Natively ``decoding.Decoder``.

    ``model`` makes the embeddings that are read.
    """

    @property
    def model(self) -> LanguageModel: ...  # noqa: D102

    @property
    def slots(self) -> int: ...  # noqa: D102

    def begin(self, slot: int, uniform: NDArray[np.float32]) -> None:
        """Make a slot ready for an utterance of as many tokens as draws ``[tokens, 2]``."""
        ...

    def stop(self, slot: int) -> None:
        """Let a slot stand still until something is read into it."""
        ...

    def constrain(
        self, slot: int, *, min_tokens: int, banned: Sequence[bool], fill_at: int = -1
    ) -> None:
        """Which control tokens may not come, and until when."""
        ...

    def count(self, slot: int) -> int:
        """Tokens of a slot's utterance that the host knows of, control tokens included."""
        ...

    def prefill(self, slot: int, embeddings: Tensor) -> None:
        """Read ``[n, width]``; the slot's next token follows them."""
        ...

    def multi_step(self, limits: Mapping[int, int], steps: int) -> None:
        """Start ``steps`` steps towards each slot's limit of tokens."""
        ...

    def collect(self) -> dict[int, tuple[list[int], bool]]:
        """New tokens of each slot since the last call, and whether a control token ended them."""
        ...

    def warm_up(self, context_len: int) -> None:
        """Make ready for sequences of up to ``context_len`` positions."""
        ...

    def dry_run(self) -> None:
        """One step of all slots, for its time."""
        ...


class StepEstimator(Protocol):
    """The velocity of mel frames at one Euler step. Natively ``estimator.Estimator``."""

    def constants(
        self, mu: Tensor, speaker: Tensor, prompt: Tensor, context: ConvContext
    ) -> Tensor:
        """What stays the same over the steps, for :meth:`__call__`."""
        ...

    def __call__(
        self, x: Tensor, constants: Tensor, step: int, inputs: ConvContext, context: LayerContext
    ) -> Tensor:
        """``x`` ``[b, t, bands]`` -> ``[b, 2, t, bands]``: with the conditions, without them."""
        ...
