"""HiFT: mel frames and an excitation to samples (HiFTNet, arXiv:2309.09493, section 2).

Transposed convolutions upsample the mel frames to the frame rate of a short-time spectrum; at each
level the spectrum of the excitation is added. The output is the magnitude and phase of an inverse
STFT.
"""

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from voicefleet.worker.engines.cosyvoice2.hyperparameters import VocoderSizes
from voicefleet.worker.engines.cosyvoice2.vocoder.extent import Extent
from voicefleet.worker.engines.cosyvoice2.vocoder.f0 import F0Predictor
from voicefleet.worker.engines.cosyvoice2.vocoder.source import HarmonicSource
from voicefleet.worker.engines.cosyvoice2.vocoder.spectrum import InverseSpectrum, Spectrum

LARGEST_MAGNITUDE = 100.0
LAST_SLOPE = 0.01
"""The slope of the leaky ReLU before the last layer: PyTorch's default, as in upstream."""


class Snake(nn.Module):
    """``x + sin(a x)^2 / a`` with one ``a`` for each channel (arXiv:2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))
        self._divisor: Tensor | None = None

    def optimise(self) -> None:
        """Precompute the divisor, to save a kernel. Call once weights are on their device."""
        self._divisor = self._safe_alpha().detach()

    def forward(self, x: Tensor) -> Tensor:
        """``[B, channels, n]`` to the same shape."""
        squared = (x * self.alpha.unsqueeze(1)).sin_().square_()
        divisor = self._safe_alpha() if self._divisor is None else self._divisor
        return torch.addcdiv(x, squared, divisor)

    def _safe_alpha(self) -> Tensor:
        return self.alpha.unsqueeze(1) + 1e-9  # upstream's guard against a division by zero


class ResidualBlock(nn.Module):
    """Pairs of a dilated and a plain convolution, each after a ``Snake``, with a residual."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()

        def conv(dilation: int) -> nn.Conv1d:
            padding = dilation * (kernel - 1) // 2
            return nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=padding)

        self.convs1 = nn.ModuleList(conv(dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(conv(1) for _ in dilations)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[B, channels, n]`` to the same; where ``mask`` is 0, ``x`` and the result are 0."""
        for snake1, conv1, snake2, conv2 in zip(
            self.activations1, self.convs1, self.activations2, self.convs2, strict=True
        ):
            # Snake keeps zeros; a convolution spreads neighbouring values into them.
            branch: Tensor = _masked(conv1(snake1(x)), mask)
            branch = _masked(conv2(snake2(branch)), mask)
            x = branch.add_(x)
        return x


class HiFT(nn.Module):
    """The network, with the weight names of upstream's ``HiFTGenerator`` and weight norm folded."""

    def __init__(self, sizes: VocoderSizes) -> None:
        super().__init__()
        self.sizes = sizes
        bins = sizes.fft + 2
        self.f0_predictor = F0Predictor(sizes)
        self.m_source = HarmonicSource(sizes)
        self.conv_pre = nn.Conv1d(sizes.mel_bands, sizes.channels, 7, padding=3)
        self.ups = nn.ModuleList()
        self.source_downs = nn.ModuleList()
        self.source_resblocks = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        channels = sizes.channels
        for level, (factor, kernel) in enumerate(
            zip(sizes.upsampling, sizes.upsampling_kernels, strict=True)
        ):
            padding = (kernel - factor) // 2
            self.ups.append(
                nn.ConvTranspose1d(channels, channels // 2, kernel, factor, padding=padding)
            )
            channels //= 2
            down = prod(sizes.upsampling[level + 1 :])
            width, side = (1, 0) if down == 1 else (2 * down, down // 2)
            self.source_downs.append(nn.Conv1d(bins, channels, width, down, padding=side))
            self.source_resblocks.append(
                ResidualBlock(channels, sizes.source_kernels[level], sizes.source_dilations[level])
            )
            for width, dilations in zip(sizes.kernels, sizes.dilations, strict=True):
                self.resblocks.append(ResidualBlock(channels, width, dilations))
        self.conv_post = nn.Conv1d(channels, bins, 7, padding=3)
        self._spectrum = Spectrum(sizes.fft, sizes.fft_hop)
        self._inverse = InverseSpectrum(sizes.fft, sizes.fft_hop)

    def decode(
        self,
        mel: Tensor,
        source: Tensor,
        trim: tuple[int, int] = (0, 0),
        extent: Extent | None = None,
    ) -> Tensor:
        """Turn mel frames and excitation into samples.

        At the window's edges convolutions are padded with zeros and the spectrum with a reflection,
        as at the ends of an utterance.

        Args:
            mel: Log-mel, float32 ``[B, mel_bands, W]``.
            source: Excitation, float32 ``[B, 1, W * hop]``.
            trim: Frames on the left and right to drop after the first level, and from the result.
                Later levels need less context, and computing it costs more.
            extent: Where utterances end within the window. Frames after the end may hold any finite
                values. Without ``trim``.

        Returns:
            Float32 ``[B, (W - sum(trim)) * hop]`` in [-limit, limit].
        """
        sizes = self.sizes
        frames = mel.shape[2]
        mask: Tensor | None = None
        if extent is not None:
            mask = extent.mask(frames)
            mel, source = mel * mask, extent.reflected(source, sizes.hop)
        spectrum: Tensor = self._spectrum(source)
        if extent is not None:
            spectrum *= extent.mask(spectrum.shape[2], sizes.hop // sizes.fft_hop, 1)
        x: Tensor = _masked(self.conv_pre(mel), mask)
        kinds = len(sizes.kernels)
        for level, up in enumerate(self.ups):
            x = up(functional.leaky_relu_(x, sizes.slope))
            more = level == len(sizes.upsampling) - 1
            if more:
                x = functional.pad(x, (1, 0), mode="reflect")  # the spectrum has one more frame
            if extent is not None:
                mask = extent.mask(x.shape[2], prod(sizes.upsampling[: level + 1]), more)
            source_part: Tensor = _masked(self.source_downs[level](spectrum), mask)
            source_part = self.source_resblocks[level](source_part, mask)
            x = source_part.add_(_masked(x, mask))
            total: Tensor = self.resblocks[level * kinds](x, mask)
            for kind in range(1, kinds):
                total += self.resblocks[level * kinds + kind](x, mask)
            x = total.div_(kinds)
            if level == 0 and any(trim):
                x, spectrum = self._without(trim, x, spectrum, frames)
        x = self.conv_post(functional.leaky_relu_(x, LAST_SLOPE))
        return self._samples(x, mask, extent)

    def _without(
        self, trim: tuple[int, int], x: Tensor, spectrum: Tensor, frames: int
    ) -> tuple[Tensor, Tensor]:
        first, end = trim[0], frames - trim[1]
        rate, spectra = self.sizes.upsampling[0], self.sizes.hop // self.sizes.fft_hop
        return (
            x[:, :, first * rate : end * rate],
            spectrum[:, :, first * spectra : end * spectra + 1],
        )

    def _samples(self, x: Tensor, mask: Tensor | None, extent: Extent | None) -> Tensor:
        """Turn log magnitude and phase ``[B, fft + 2, n]`` into samples."""
        bins = self.sizes.fft // 2 + 1
        magnitude = x[:, :bins].exp().clamp_(max=LARGEST_MAGNITUDE)
        phase = x[:, bins:].sin()
        parts = torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], dim=1)
        samples: Tensor = self._inverse(_masked(parts, mask), extent, self.sizes.hop)
        return samples.clamp_(-self.sizes.limit, self.sizes.limit)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Multiply ``x`` by ``mask``, in place."""
    return x if mask is None else x.mul_(mask)
