"""Short-time Fourier transforms, each as one convolution: one kernel, and no FFT plans.

They equal ``torch.stft`` and ``torch.istft`` with a periodic Hann window, centred frames and
reflected edges.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from voicefleet.worker.engines.cosyvoice2.vocoder.extent import Extent


def _bases(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines and sines ``[size // 2 + 1, size]`` and the window ``[size]``, float64."""
    # The device is named because the module may be built on the meta device.
    window = torch.hann_window(size, periodic=True, dtype=torch.float64, device="cpu")
    n = torch.arange(size, dtype=torch.float64, device="cpu")
    angles = 2 * torch.pi / size * torch.outer(n[: size // 2 + 1], n)
    return angles.cos(), angles.sin(), window


class Spectrum(nn.Module):
    """Samples ``[B, 1, n]`` to bins ``[B, size + 2, n / hop + 1]``: real parts, then imaginary."""

    _basis: Tensor

    def __init__(self, size: int, hop: int) -> None:
        super().__init__()
        self._size, self._hop = size, hop
        cosines, sines, window = _bases(size)
        basis = (torch.cat([cosines, -sines]) * window).unsqueeze(1).float()
        self.register_buffer("_basis", basis, persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """Transform; ``n`` is a multiple of ``hop`` and more than half of ``size``."""
        half = self._size // 2
        padded = functional.pad(samples, (half, half), mode="reflect")
        return functional.conv1d(padded, self._basis, stride=self._hop)


class InverseSpectrum(nn.Module):
    """Bins ``[B, size + 2, n / hop + 1]`` to samples ``[B, n]`` by weighted overlap and add.

    Raises:
        ValueError: ``size`` is not a multiple of ``hop``, at least three times it: the squared
            windows would not add up to a constant.
    """

    _basis: Tensor
    _head: Tensor
    _tail: Tensor

    def __init__(self, size: int, hop: int) -> None:
        super().__init__()
        if size % hop or size < 3 * hop:
            raise ValueError(f"a transform of {size} cannot advance by {hop}")
        self._size, self._hop = size, hop
        cosines, sines, window = _bases(size)
        # Every bin but the first and the last also stands for its mirror image.
        twice = torch.full((size // 2 + 1, 1), 2.0, dtype=torch.float64, device="cpu")
        twice[0] = twice[-1] = 1.0
        overlap = _overlap(window, hop)
        steady = overlap[overlap.shape[0] // 2]
        basis = torch.cat([cosines * twice, -sines * twice]) * window / (size * steady)
        # Fewer frames overlap at the two ends, so the samples there are divided by less.
        correction = (steady / overlap)[size // 2 : -(size // 2)].float()
        self.register_buffer("_basis", basis.unsqueeze(1).float(), persistent=False)
        self.register_buffer("_head", correction[: size // 2].clone(), persistent=False)
        self.register_buffer("_tail", correction[-(size // 2) :].clone(), persistent=False)

    def forward(self, bins: Tensor, extent: Extent | None = None, hop: int = 1) -> Tensor:
        """Transform back; ``n`` is at least ``size``.

        Args:
            bins: Zeros after the end that ``extent`` gives.
            extent: Where each row ends, if not at the window's end.
            hop: Samples for each frame of ``extent``.
        """
        half = self._size // 2
        padded = functional.conv_transpose1d(bins, self._basis, stride=self._hop)
        samples = padded[:, 0, half:-half]
        samples[:, :half] *= self._head
        if extent is not None:
            return extent.tapered(samples, hop, self._tail)
        samples[:, -half:] *= self._tail
        return samples


def _overlap(window: Tensor, hop: int) -> Tensor:
    """The sum of the squared windows of a few frames; in the middle its period is ``hop``."""
    size = window.shape[0]
    frames = 4 * size // hop + 1
    total = window.new_zeros((frames - 1) * hop + size)
    for frame in range(frames):
        total[frame * hop : frame * hop + size] += window**2
    return total
