"""The vocoder's excitation: harmonics of f0 and noise (NSF, arXiv:1904.12088, section II.C).

Upstream adds up the phase in float32 from the start of each call. Here it is carried in float64,
so that a window continues the one before it and an hour is as exact as a second.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from voicefleet.worker.engines.cosyvoice2.hyperparameters import VocoderSizes


class Cursor(NamedTuple):
    """Where each row's window stands in its utterance, on the device: all ``[B]``.

    ``first``, ``anchor`` and ``until`` are int64 frame numbers from the utterance's start: of the
    window's first frame, of the frame before which ``phase`` holds, and of the frame before which
    the phase is asked for; the latter two lie in the window or right behind it. ``phase`` is the
    fundamental's, float64, in cycles.
    """

    first: Tensor
    anchor: Tensor
    until: Tensor
    phase: Tensor


class HarmonicSource(nn.Module):
    """Sines at f0 and its multiples where a frame is voiced, else noise, mixed into one signal.

    Equals upstream's ``SourceModuleHnNSF2`` with ``SineGen2`` where the highest harmonic stays
    below the sample rate. There each frame's phase stands in the middle of its samples and is
    interpolated linearly; it rests in the half frames at the utterance's two ends.
    """

    _harmonics: Tensor
    _before: Tensor
    _after: Tensor

    def __init__(self, sizes: VocoderSizes) -> None:
        super().__init__()
        self._sizes = sizes
        self.l_linear = nn.Linear(sizes.harmonics + 1, 1)
        # The device is named because parameters may be wanted on the meta device.
        harmonics = torch.arange(1, sizes.harmonics + 2, dtype=torch.float32, device="cpu")
        samples = torch.arange(sizes.hop, dtype=torch.float32, device="cpu")
        from_middle = samples + 0.5 - sizes.hop / 2
        self.register_buffer("_harmonics", harmonics, persistent=False)
        self.register_buffer("_before", from_middle.clamp(max=0), persistent=False)
        self.register_buffer("_after", from_middle.clamp(min=0), persistent=False)

    def forward(self, f0: Tensor, noise: Tensor, cursor: Cursor) -> tuple[Tensor, Tensor]:
        """The window's excitation, and the phase for the window after it.

        Args:
            f0: Hz, ``[B, W]``.
            noise: Standard normal, ``[B, W * hop, harmonics + 1]`` float32.
            cursor: Where the window stands.

        Returns:
            Samples ``[B, 1, W * hop]`` float32 in (-1, 1), and the phase before frame
            ``cursor.until`` in cycles, ``[B]`` float64 in [0, 1).
        """
        sizes = self._sizes
        rows, frames = f0.shape
        phase, carried = self._phase(f0.double() / sizes.sample_rate, cursor)
        # The fundamental is reduced in float64 before it is multiplied in float32.
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
        """From cycles a sample ``[B, W]``: phase of each sample ``[B, W, hop]``, and to carry."""
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
