"""Utterances shorter than their window: masks that keep the padding from affecting the samples.

Windows have one of a few lengths, so that they can be captured in graphs; shorter utterances are
padded. Every convolution must then read zeros after the utterance's end, and the spectrum a
reflection, as they would at the edge of a window of exactly the utterance's length.
"""

import torch
from torch import Tensor
from torch.nn import functional


class Extent:
    """Where the utterance ends in each row of a batch of windows.

    Args:
        frames: Mel frames from the window's start on, at least one: ``[B]`` int64, on the device.
    """

    def __init__(self, frames: Tensor) -> None:
        self._frames = frames

    def mask(self, places: int, rate: int = 1, more: int = 0) -> Tensor:
        """A mask, 1 up to the end and 0 after it: float32 ``[B, 1, places]``.

        Args:
            places: The length of the window at some layer's rate.
            rate: Places for each mel frame.
            more: Places that the utterance has beyond those of its frames.
        """
        end = self._frames * rate + more
        within = torch.arange(places, device=end.device) < end.unsqueeze(1)
        return within.float().unsqueeze(1)

    def reflected(self, samples: Tensor, hop: int) -> Tensor:
        """Samples ``[B, 1, n]``, with their reflection after the end."""
        places = torch.arange(samples.shape[2], device=samples.device)
        last = (self._frames * hop - 1).unsqueeze(1)
        mirrored = torch.where(places > last, 2 * last - places, places).clamp_(min=0)
        return samples.gather(2, mirrored.unsqueeze(1))

    def tapered(self, samples: Tensor, hop: int, tail: Tensor) -> Tensor:
        """Samples ``[B, n]``, with the last ones before the end multiplied by ``tail``."""
        places = torch.arange(samples.shape[1], device=samples.device)
        into = places - (self._frames * hop - len(tail)).unsqueeze(1)
        # Before the tail and after the end the factor is 1.
        factors = functional.pad(tail, (1, 1), value=1.0)
        index = (into + 1).clamp_(0, len(tail) + 1)
        return samples * factors[index]
