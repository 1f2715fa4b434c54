"""Something like speech to read: syllables of gliding harmonics over a breath of noise."""

import numpy as np
from numpy.typing import NDArray


def speechlike(seconds: float, rate: int, seed: int = 0, peak: float = 0.5) -> NDArray[np.float32]:
    """Mono float32 ``[seconds * rate]``."""
    rng = np.random.Generator(np.random.PCG64(seed))
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * 0.7 * time + seed)) / rate
    harmonics = [np.sin(k * phase + rng.uniform(0, 6)) / k for k in range(1, 20)]
    syllables = 0.55 + 0.45 * np.sin(2 * np.pi * 4 * time)
    sound = syllables * np.sum(harmonics, axis=0) + 0.01 * rng.standard_normal(len(time))
    return (peak * sound / np.abs(sound).max()).astype(np.float32)
