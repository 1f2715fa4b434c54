"""Repetition-aware sampling, for all rows at once and entirely on the device."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voicefleet.worker.engines.cosyvoice2.hyperparameters import Sampling

DRAWS = 2
"""Uniform numbers for each token: one for the nucleus, one for the second draw."""


def draws(seed: int, segment: int, tokens: int) -> NDArray[np.float32]:
    """The random draws of one utterance: float32 ``[tokens, 2]``, uniform in [0, 1).

    They depend on ``seed`` and the utterance's number ``segment`` alone, so that every worker that
    speaks the utterance uses the same draws.
    """
    bits = np.random.Philox(np.random.SeedSequence((seed & (2**64 - 1), segment)))
    return np.random.Generator(bits).random((tokens, DRAWS), dtype=np.float32)


def choose(
    logits: Tensor, recent: Tensor, uniform: Tensor, forbidden: Tensor, sampling: Sampling
) -> Tensor:
    """Sample one token for each row (VALL-E 2, section 3.2; upstream's ``ras_sampling``).

    As in upstream's newest code, forbidden tokens are excluded before the nucleus is formed, and a
    repeating token is excluded from the second draw.

    Args:
        logits: ``[rows, tokens]`` float32.
        recent: ``[rows, window]``: the latest tokens, -1 where there are none yet.
        uniform: ``[rows, 2]`` in [0, 1).
        forbidden: ``[rows, tokens]`` bool: tokens that must not be sampled.
        sampling: Nucleus and repetition window.

    Returns:
        ``[rows]`` int64.
    """
    probability = logits.masked_fill(forbidden, -math.inf).softmax(dim=-1)
    likely, token = probability.topk(min(sampling.top_k, logits.shape[-1]), dim=-1)
    # A token is in the nucleus if the likelier ones together have less than ``top_p``.
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
    # The first index whose cumulative weight exceeds the target; its weight is never zero.
    return (cumulative <= target).sum(dim=-1, keepdim=True).clamp_(max=weights.shape[-1] - 1)
