"""Repetition-aware sampling, for all sessions at once and without leaving the device."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voicefleet.worker.engines.cosyvoice2.hyperparameters import Sampling

DRAWS = 2
"""Uniform numbers that one token takes: one for the nucleus, one for drawing again."""


def draws(seed: int, segment: int, tokens: int) -> NDArray[np.float32]:
    """The randomness of one segment: ``[tokens, 2]`` uniform in [0, 1).

    It is made before the segment begins, so that a token depends on its number alone, and that
    whoever makes the segment again draws the same.
    """
    bits = np.random.Philox(np.random.SeedSequence((seed & (2**64 - 1), segment)))
    return np.random.Generator(bits).random((tokens, DRAWS), dtype=np.float32)


def choose(
    logits: Tensor, recent: Tensor, uniform: Tensor, forbidden: Tensor, sampling: Sampling
) -> Tensor:
    """One token for each row (VALL-E 2, section 3.2; upstream's ``ras_sampling``).

    As in upstream's newest code what is forbidden is left out before the nucleus is found, and
    what repeats is left out of what is drawn from then.

    Args:
        logits: ``[rows, tokens]`` float32.
        recent: ``[rows, window]`` the latest tokens; -1 where there are none yet.
        uniform: ``[rows, 2]`` in [0, 1).
        forbidden: ``[rows, tokens]`` bool: what must not come.
        sampling: Nucleus and repetition window.

    Returns:
        ``[rows]`` int64.
    """
    probability = logits.masked_fill(forbidden, -math.inf).softmax(dim=-1)
    likely, token = probability.topk(min(sampling.top_k, logits.shape[-1]), dim=-1)
    # A token is in the nucleus when those before it do not fill it yet.
    nucleus = torch.where(likely.cumsum(dim=-1) - likely < sampling.top_p, likely, 0.0)
    first = token.gather(-1, _draw(nucleus, uniform[:, :1]))
    repeats = (recent == first).sum(dim=-1, keepdim=True)
    second = _draw(probability.scatter(-1, first, 0.0), uniform[:, 1:])
    again = repeats >= sampling.window * sampling.tau
    return torch.where(again, second, first).squeeze(-1)


def _draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Invert each row's cumulative weight at ``uniform [rows, 1]``; returns ``[rows, 1]``."""
    cumulative = weights.cumsum(dim=-1)
    target = uniform * cumulative[:, -1:]
    # The first place whose cumulative weight exceeds the target: never one of weight zero.
    return (cumulative <= target).sum(dim=-1, keepdim=True).clamp_(max=weights.shape[-1] - 1)
