"""Utterances that end within their window: what lies behind the end has no say in what is before.

A window has one of a few lengths, so that it can come from a graph; an utterance that is shorter
is padded. Every convolution must then see zeros behind the utterance's end, as it would at the edge
of a window of just that length, and the spectrum a reflection.
"""

import torch
from torch import Tensor
from torch.nn import functional


class Extent:
    """How much of each row of a batch of windows is the utterance's.

    Args:
        frames: Mel frames from the window's start on, at least one: ``[B]`` int64, on the device.
    """

    def __init__(self, frames: Tensor) -> None:
        self._frames = frames

    def mask(self, places: int, rate: int = 1, more: int = 0) -> Tensor:
        """1 up to the end and 0 behind it, ``[B, 1, places]`` float32.

        Args:
            places: Of the whole window.
            rate: Places a frame.
            more: Places that the utterance has beside its frames'.
        """
        end = self._frames * rate + more
        within = torch.arange(places, device=end.device) < end.unsqueeze(1)
        return within.float().unsqueeze(1)

    def reflected(self, samples: Tensor, hop: int) -> Tensor:
        """Samples ``[B, 1, n]`` with a reflection of them behind the end."""
        places = torch.arange(samples.shape[2], device=samples.device)
        last = (self._frames * hop - 1).unsqueeze(1)
        mirrored = torch.where(places > last, 2 * last - places, places).clamp_(min=0)
        return samples.gather(2, mirrored.unsqueeze(1))

    def tapered(self, samples: Tensor, hop: int, tail: Tensor) -> Tensor:
        """Samples ``[B, n]``, the last before the end times ``tail``."""
        places = torch.arange(samples.shape[1], device=samples.device)
        into = places - (self._frames * hop - len(tail)).unsqueeze(1)
        # Before the tail its first place says 1, and behind the end its last one.
        factors = functional.pad(tail, (1, 1), value=1.0)
        index = (into + 1).clamp_(0, len(tail) + 1)
        return samples * factors[index]
