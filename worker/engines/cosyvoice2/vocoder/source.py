"""The vocoder's excitation: harmonics of f0 and noise (NSF, arXiv:1904.12088, section II.C).

Upstream sums the phase in float32 from the start of each call. Here it is carried in float64, so
that a window continues the one before it, without losing precision over a long utterance.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from voicefleet.worker.engines.cosyvoice2.hyperparameters import VocoderSizes


class Cursor(NamedTuple):
    """The position of each row's window in its utterance; all ``[B]`` on the device.

    Attributes:
        first: The window's first frame, int64, counted from the utterance's start.
        anchor: The frame before which ``phase`` is given.
        until: The frame before which the phase is returned. Like ``anchor`` it lies in the window
            or directly after it.
        phase: The fundamental's phase in cycles, float64.
    """

    first: Tensor
    anchor: Tensor
    until: Tensor
    phase: Tensor


class HarmonicSource(nn.Module):
    """Mixes sines at f0 and its multiples for voiced frames, and noise for unvoiced ones.

    Equals upstream's ``SourceModuleHnNSF2`` with ``SineGen2`` if the highest harmonic is below the
    sample rate. A frame's phase holds for the middle of its samples and is interpolated linearly
    between frames; it is constant in the half frames at the utterance's two ends.
    """

    _harmonics: Tensor
    _before: Tensor
    _after: Tensor

    def __init__(self, sizes: VocoderSizes) -> None:
        super().__init__()
        self._sizes = sizes
        self.l_linear = nn.Linear(sizes.harmonics + 1, 1)
        # The device is named because the module may be built on the meta device.
        harmonics = torch.arange(1, sizes.harmonics + 2, dtype=torch.float32, device="cpu")
        samples = torch.arange(sizes.hop, dtype=torch.float32, device="cpu")
        from_middle = samples + 0.5 - sizes.hop / 2
        self.register_buffer("_harmonics", harmonics, persistent=False)
        self.register_buffer("_before", from_middle.clamp(max=0), persistent=False)
        self.register_buffer("_after", from_middle.clamp(min=0), persistent=False)

    def forward(self, f0: Tensor, noise: Tensor, cursor: Cursor) -> tuple[Tensor, Tensor]:
        """Compute the window's excitation, and the phase for the next window.

        Args:
            f0: Hz, ``[B, W]``.
            noise: Standard normal, ``[B, W * hop, harmonics + 1]`` float32.
            cursor: The window's position.

        Returns:
            Samples ``[B, 1, W * hop]`` float32 in (-1, 1), and the phase before frame
            ``cursor.until`` in cycles, ``[B]`` float64 in [0, 1).
        """
        sizes = self._sizes
        rows, frames = f0.shape
        phase, carried = self._phase(f0.double() / sizes.sample_rate, cursor)
        # The fundamental's phase is reduced to one cycle in float64, then multiplied in float32.
        cycles = (phase - phase.round()).to(noise.dtype).unsqueeze(-1) * self._harmonics
        cycles -= cycles.round()
        sines = cycles.mul_(2 * torch.pi).sin_()
        voiced = (f0 > sizes.voiced_threshold).to(noise.dtype)[:, :, None, None]
        unvoiced_noise = sizes.source_amplitude / 3
        loudness = unvoiced_noise + voiced * (sizes.source_noise - unvoiced_noise)
        hiss = noise.view(rows, frames, sizes.hop, -1) * loudness
        waves = torch.addcmul(hiss, sines, voiced * sizes.source_amplitude)
        mixed: Tensor = self.l_linear(waves)
        return mixed.tanh_().view(rows, 1, -1), carried

    def _phase(self, cycles: Tensor, cursor: Cursor) -> tuple[Tensor, Tensor]:
        """The phase of each sample ``[B, W, hop]`` and the one to carry, from cycles per sample."""
        rows, frames = cycles.shape
        passed = (cycles * self._sizes.hop).cumsum(1)
        passed = torch.cat([passed.new_zeros(rows, 1), passed], dim=1)
        offset = cursor.phase - passed.gather(1, _column(cursor.anchor - cursor.first)).squeeze(1)
        carried = offset + passed.gather(1, _column(cursor.until - cursor.first)).squeeze(1)
        middle = torch.remainder(passed[:, 1:] + offset.unsqueeze(1), 1.0)
        at_start = torch.arange(frames, device=cycles.device) + cursor.first.unsqueeze(1) == 0
        slope_before = cycles.masked_fill(at_start, 0.0)
        slope_after = nn.functional.pad(cycles[:, 1:], (0, 1))
        phase = torch.addcmul(middle.unsqueeze(-1), slope_before.unsqueeze(-1), self._before)
        phase = torch.addcmul(phase, slope_after.unsqueeze(-1), self._after)
        return phase, torch.remainder(carried, 1.0)


def _column(index: Tensor) -> Tensor:
    return index.unsqueeze(1)
