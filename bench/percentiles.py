"""Percentiles with the number of their samples."""

from collections.abc import Iterable
from typing import Self

import msgspec
import numpy as np


class Percentiles(msgspec.Struct, frozen=True):
    """Nearest-rank percentiles: measured values, without interpolation."""

    count: int
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, samples: "Iterable[float] | np.ndarray") -> Self:
        """The percentiles of at least one sample."""
        values = np.asarray(samples if isinstance(samples, np.ndarray) else list(samples), float)
        p50, p95, p99 = np.percentile(values, (50, 95, 99), method="inverted_cdf").tolist()
        return cls(len(values), p50, p95, p99, float(values.max()))
