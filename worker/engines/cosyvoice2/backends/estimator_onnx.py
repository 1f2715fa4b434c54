"""Exports one Euler step of the flow's estimator as an ONNX graph, for whole utterances."""

from typing import Any

import torch
from torch import Tensor, nn

from voicefleet.worker.engines.cosyvoice2.flow.context import EmptyContext
from voicefleet.worker.engines.cosyvoice2.flow.estimator import GUIDANCE_ROWS, Estimator

INPUTS = ("x", "constants", "step", "mask")
OUTPUT = "velocity"
OPSET = 18

MOST_FRAMES = 1 << 16
"""The most frames that the graph accepts; TensorRT's profile has its own, lower maximum."""


class WholeStep(nn.Module):
    """The estimator's step without a cache."""

    def __init__(self, estimator: Estimator) -> None:
        super().__init__()
        self.estimator = estimator

    def forward(self, x: Tensor, constants: Tensor, step: Tensor, mask: Tensor) -> Tensor:
        """Compute the velocity of an utterance.

        Args:
            x: The state, ``[1, t, bands]``.
            constants: From ``Estimator.constants``, ``[1, 2, t, 2 * channels]``.
            step: The index of the Euler step, i64 ``[1]``.
            mask: Added to attention scores, ``[2, 1, t, t]``; it decides whether chunks stream.

        Returns:
            ``[1, 2, t, bands]``: with the conditions, and without them.
        """
        context = EmptyContext(mask)
        # The estimator gets the time embeddings of this step alone, as its step 0.
        own = {"moments": self.estimator.moments.index_select(0, step)}
        return torch.func.functional_call(self.estimator, own, (x, constants, 0, context, context))


def shapes(estimator: Estimator, frames: int) -> tuple[tuple[int, ...], ...]:
    """The input shapes of :class:`WholeStep`, in their order, for ``frames`` frames."""
    return (
        (1, frames, estimator.bands),
        (1, GUIDANCE_ROWS, frames, 2 * estimator.channels),
        (1,),
        (GUIDANCE_ROWS, 1, frames, frames),
    )


def export(estimator: Estimator) -> bytes:
    """Return the graph with its weights, in the estimator's dtype; ``t`` is a dynamic axis.

    Needs the packages ``onnx`` and ``onnxscript``.
    """
    frames = torch.export.Dim("t", min=2, max=MOST_FRAMES)
    free: tuple[dict[int, Any], ...] = ({1: frames}, {2: frames}, {}, {2: frames, 3: frames})
    floats = estimator.entry_bias
    x, constants, step, mask = (floats.new_zeros(shape) for shape in shapes(estimator, 12))
    # Tracing needs version counters, which inference tensors lack.
    with torch.inference_mode(mode=False), torch.no_grad():
        program = torch.onnx.export(
            WholeStep(estimator).eval(),
            (x, constants, step.long(), mask),
            dynamo=True,
            opset_version=OPSET,
            input_names=INPUTS,
            output_names=(OUTPUT,),
            dynamic_shapes=free,
            verbose=False,
        )
    assert program is not None
    graph: Any = program.model_proto
    return graph.SerializeToString()
