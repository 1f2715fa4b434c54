"""Upstream's vocoder streaming, with our modules: for comparison, audible seams included.

Each call starts with the last 8 mel frames of the previous call, reuses that call's excitation for
them, withholds 8 frames of samples and cross-fades both renderings of these with the halves of a
Hamming window. The halves add up to 1.08 instead of 1, phase and noise start anew in each call, and
8 frames are less than the network's receptive field: hence the seams.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from voicefleet.worker.engines.cosyvoice2.vocoder.model import Vocoder
from voicefleet.worker.engines.cosyvoice2.vocoder.source import Cursor

CACHED_FRAMES = 8

Noise = Callable[[int], Tensor]
"""Returns standard normal float32 ``[1, n, harmonics + 1]`` on the vocoder's device, for ``n``."""


class UpstreamStreaming:
    """One utterance, as ``CosyVoice2Model.token2wav`` of upstream's ``cli/model.py`` renders it."""

    def __init__(self, vocoder: Vocoder, noise: Noise) -> None:
        self._vocoder = vocoder
        self._noise = noise
        self._overlap = CACHED_FRAMES * vocoder.sizes.hop
        self._cache: tuple[Tensor, Tensor, Tensor] | None = None

    def push(self, mel: Tensor, final: bool) -> Tensor:
        """Turn log-mel ``[1, mel_bands, T]`` into samples, float32 ``[1, n]``.

        Unless ``final``, the last 8 frames of samples are withheld.

        Upstream's chunks are never shorter than 8 frames before the final one.
        """
        if self._cache is not None:
            mel = torch.cat([self._cache[0], mel], dim=2)
        samples, source = self._render(mel)
        if self._cache is not None:
            samples = self._fade(samples, self._cache[2])
        if final:
            return samples
        self._cache = (
            mel[:, :, -CACHED_FRAMES:],
            source[:, :, -self._overlap :],
            samples[:, -self._overlap :],
        )
        return samples[:, : -self._overlap]

    def _render(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        vocoder = self._vocoder
        start = torch.zeros(1, dtype=torch.int64, device=mel.device)
        cursor = Cursor(start, start, start, start.double())
        noise = self._noise(mel.shape[2] * vocoder.sizes.hop)
        source: Tensor = vocoder.m_source(vocoder.f0_predictor(mel), noise, cursor)[0]
        if self._cache is not None:
            cached = self._cache[1]
            source = torch.cat([cached, source[:, :, cached.shape[2] :]], dim=2)
        return vocoder.decode(mel, source), source

    def _fade(self, samples: Tensor, before: Tensor) -> Tensor:
        window = torch.hamming_window(
            2 * self._overlap, periodic=False, dtype=torch.float64, device=samples.device
        )
        rise, fall = window.chunk(2)
        faded = samples[:, : self._overlap] * rise + before * fall
        return torch.cat([faded.to(samples.dtype), samples[:, self._overlap :]], dim=1)
