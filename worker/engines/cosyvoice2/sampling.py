"""Repetition-aware sampling, for all sessions at once and without leaving the device."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.engines.cosyvoice2.hyperparameters import Sampling

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

    Upstream draws again and again until a forbidden token is not what comes; here it is left out
    of what is drawn from, which gives the same distribution with one draw.

    Args:
        logits: ``[rows, tokens]`` float32.
        recent: ``[rows, window]`` the latest tokens; -1 where there are none yet.
        uniform: ``[rows, 2]`` in [0, 1).
        forbidden: ``[rows, tokens]`` bool: what must not come.
        sampling: Nucleus and repetition window.

    Returns:
        ``[rows]`` int64.
    """
    probability = logits.softmax(dim=-1)
    likely, token = probability.topk(min(sampling.top_k, logits.shape[-1]), dim=-1)
    # A token is in the nucleus when those before it do not fill it yet.
    inside = likely.cumsum(dim=-1) - likely < sampling.top_p
    inside &= ~forbidden.gather(-1, token)
    nucleus = torch.where(inside, likely, 0.0)
    first = token.gather(-1, _draw(nucleus, uniform[:, :1])).squeeze(-1)

    repeats = (recent == first[:, None]).sum(dim=-1)
    again = repeats >= sampling.window * sampling.tau
    # Where the nucleus holds nothing that may come, anything else may.
    found = inside.any(dim=-1)
    again |= ~found
    left_out = found[:, None] | forbidden.gather(-1, first[:, None])
    excluded = forbidden.scatter(-1, first[:, None], left_out)
    others = torch.where(excluded, 0.0, probability)
    second = _draw(others, uniform[:, 1:]).squeeze(-1)
    return torch.where(again, second, first)


def _draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Invert each row's cumulative weight at ``uniform [rows, 1]``; returns ``[rows, 1]``."""
    cumulative = weights.cumsum(dim=-1)
    target = uniform * cumulative[:, -1:]
    # The first place whose cumulative weight exceeds the target: never one of weight zero.
    return (cumulative <= target).sum(dim=-1, keepdim=True).clamp_(max=weights.shape[-1] - 1)
