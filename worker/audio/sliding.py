"""Maxima and sums over a window that slides along a signal.

Every result is made by the same tree of elementwise operations, whatever the length of the
array, so a value depends on the samples in its window alone, to the last bit. Running sums,
``np.convolve`` and reductions along an axis do not give that: they regroup with the shape.
"""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[np.float64]
Scalar = TypeVar("Scalar", np.float64, np.bool)


def sliding_max(x: NDArray[Scalar], width: int) -> NDArray[Scalar]:
    """``y[i] = max(x[i : i + width])``, shape ``[len(x) - width + 1]``."""
    reach = 1
    while 2 * reach <= width:
        x = np.maximum(x[:-reach], x[reach:])
        reach *= 2
    rest = width - reach
    return np.maximum(x[:-rest], x[rest:]) if rest else x


def sliding_sum(x: Signal, width: int) -> Signal:
    """``y[i] = sum(x[i : i + width])``, shape ``[len(x) - width + 1]``."""
    length = len(x) - width + 1
    total = np.zeros(length)
    # ``x`` holds sums over ``reach`` samples; the binary digits of the width say which to add.
    reach, offset = 1, 0
    while True:
        if width & reach:
            total += x[offset : offset + length]
            offset += reach
        if offset == width:
            return total
        x = x[:-reach] + x[reach:]
        reach *= 2
