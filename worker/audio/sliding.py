"""Maxima and sums over a sliding window.

Every result is computed by the same tree of elementwise operations, whatever the array's length, so
that it depends on the samples in its window alone, to the last bit. Running sums, ``np.convolve``
and reductions along an axis regroup additions with the array's shape.
"""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[np.float64]
Scalar = TypeVar("Scalar", np.float64, np.bool)


def sliding_max(x: NDArray[Scalar], width: int) -> NDArray[Scalar]:
    """``y[i] = max(x[i : i + width])``, shape ``[len(x) - width + 1]``."""
    span = 1
    while 2 * span <= width:
        x = np.maximum(x[:-span], x[span:])
        span *= 2
    shift = width - span
    return np.maximum(x[:-shift], x[shift:]) if shift else x


def sliding_sum(x: Signal, width: int) -> Signal:
    """``y[i] = sum(x[i : i + width])``, shape ``[len(x) - width + 1]``."""
    length = len(x) - width + 1
    total = np.zeros(length)
    # ``x`` holds sums over ``span`` samples; the binary digits of the width select those to add.
    span, offset = 1, 0
    while True:
        if width & span:
            total += x[offset : offset + length]
            offset += span
        if offset == width:
            return total
        x = x[:-span] + x[span:]
        span *= 2
