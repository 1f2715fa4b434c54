"""Speaking faster or slower: mel frames interpolated along time, streaming without seams."""

from math import floor

import torch
from torch import Tensor


def stretched_frames(frames: int, speed: float, final: bool) -> int:
    """How many stretched frames ``frames`` frames give; ``final``: no more follow."""
    if speed == 1.0:
        return frames
    if final:
        return floor(frames / speed)
    # Stretched frame i lies at (i + 0.5) * speed - 0.5 and needs the frame after that.
    count = max(0, floor((frames - 0.5) / speed - 0.5) + 1)
    while count and _right(count - 1, speed) >= frames:
        count -= 1
    return count


def _right(index: int, speed: float) -> int:
    return max(0, floor((index + 0.5) * speed - 0.5)) + 1


class Stretch:
    """Stretches one utterance to ``speed`` (above 0; 2 is twice as fast).

    Equals ``interpolate(mode="linear", scale_factor=1 / speed)`` over the whole utterance: a
    stretched frame depends on its position alone. Upstream offers this only without streaming, and
    rounds the factor so that the last frame ends with the utterance.
    """

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._made = 0
        self._taken = 0
        self._history: Tensor | None = None

    def push(self, mel: Tensor, final: bool) -> Tensor:
        """Take frames ``[..., T]``, perhaps none; return the stretched frames they complete.

        After the utterance's end its last frame repeats. Do not call it again after ``final``.
        """
        if self._speed == 1.0:
            return mel
        history = mel if self._history is None else torch.cat([self._history, mel], dim=-1)
        oldest = self._taken + mel.shape[-1] - history.shape[-1]
        self._taken += mel.shape[-1]
        count = stretched_frames(self._taken, self._speed, final)
        indices = torch.arange(self._made, count, dtype=torch.float64, device=mel.device)
        positions = ((indices + 0.5) * self._speed - 0.5).clamp_(min=0.0)
        left = positions.floor()
        weight = (positions - left).to(mel.dtype)
        left_index = left.long().clamp_(max=self._taken - 1) - oldest
        right_index = (left_index + 1).clamp_(max=self._taken - 1 - oldest)
        self._made = max(self._made, count)
        needed = min(self._taken, _right(self._made, self._speed) - 1)
        self._history = history[..., max(0, needed - oldest) :]
        return torch.lerp(
            history.index_select(-1, left_index), history.index_select(-1, right_index), weight
        )
