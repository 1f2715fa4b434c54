"""Mel frames to samples, whole or in windows that join without a seam.

A window computes what it keeps and the network's reach on both sides of it. The phase of the
fundamental is carried from window to window and noise is read by position, so that a kept sample
is that of the whole utterance rendered at once, whatever the windows. ``vocoder_windows`` plans.
"""

import torch
from torch import Tensor

from voicefleet.worker.engines.cosyvoice2.hyperparameters import VocoderSizes
from voicefleet.worker.engines.cosyvoice2.vocoder.extent import Extent
from voicefleet.worker.engines.cosyvoice2.vocoder.hift import HiFT, Snake
from voicefleet.worker.engines.cosyvoice2.vocoder.noise import noise_table, read_noise
from voicefleet.worker.engines.cosyvoice2.vocoder.source import Cursor


class Vocoder(HiFT):
    """HiFT over batches of windows. Always float32; f0 and phase in float64.

    ``rows_apart``: on the CPU each row of a batch is computed by itself, as kernels there add up
    in an order that depends on the batch, and a row must not depend on its company.
    """

    _noise: Tensor

    def __init__(self, sizes: VocoderSizes, rows_apart: bool = True) -> None:
        super().__init__(sizes)
        self.rows_apart = rows_apart
        table = noise_table(sizes.sample_rate, sizes.harmonics + 1)
        self.register_buffer("_noise", table, persistent=False)

    def optimise(self) -> None:
        """Call after the weights are loaded and on their device; twice is no harm.

        f0 goes to float64, where two windows agree on a frame's pitch to the last bit that
        counts: the phase adds their differences up over an utterance.
        """
        self.f0_predictor.double()
        for module in self.modules():
            if isinstance(module, Snake):
                module.optimise()

    def waveform(self, mel: Tensor, noise: Tensor, phase: Tensor | None = None) -> Tensor:
        """Whole utterances of one length at once.

        Args:
            mel: Log-mel ``[B, mel_bands, W]`` float32.
            noise: Standard normal ``[B, W * hop, harmonics + 1]`` float32.
            phase: The fundamental's phase at the start in cycles, ``[B]`` float64, else 0.

        Returns:
            Samples ``[B, W * hop]`` float32 at ``sizes.sample_rate``.
        """
        start = torch.zeros(mel.shape[0], dtype=torch.int64, device=mel.device)
        cursor = Cursor(start, start, start, start.double() if phase is None else phase)
        return self._render(mel, noise, cursor)[0]

    def window(
        self,
        mel: Tensor,
        noise_offset: Tensor,
        cursor: Cursor,
        trim: tuple[int, int] = (0, 0),
        filled: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One window each of ``B`` utterances. Safe in a CUDA graph: no sync, static shapes.

        Args:
            mel: Log-mel ``[B, W, mel_bands]`` float32. Frames behind an unfinished utterance's
                last may hold anything finite.
            noise_offset: Of each utterance, from ``vocoder_noise.noise_offset``: ``[B]`` int64.
            cursor: Where the windows stand and the phase carried to them.
            trim: Frames on the left and right whose samples are not wanted; like the shapes,
                one for all rows and fixed in a graph.
            filled: Where the utterances both begin and end in their windows: how many frames are
                theirs, ``[B]`` int64. Samples behind those are of no use. Without ``trim``.

        Returns:
            Samples ``[B, (W - sum(trim)) * hop]`` float32 at ``sizes.sample_rate``, of which the
            plan says what to keep, and the phase before frame ``cursor.until``: ``[B]`` float64,
            in cycles.
        """
        rows = mel.shape[0]
        if self.rows_apart and rows > 1 and mel.device.type == "cpu":
            one_by_one = [
                self.window(
                    mel[row : row + 1],
                    noise_offset[row : row + 1],
                    Cursor(*(field[row : row + 1] for field in cursor)),
                    trim,
                    None if filled is None else filled[row : row + 1],
                )
                for row in range(rows)
            ]
            samples, phases = zip(*one_by_one, strict=True)
            return torch.cat(samples), torch.cat(phases)
        hop = self.sizes.hop
        noise = read_noise(self._noise, noise_offset, cursor.first * hop, mel.shape[1] * hop)
        extent = None if filled is None else Extent(filled)
        return self._render(mel.transpose(1, 2).contiguous(), noise, cursor, trim, extent)

    def _render(
        self,
        mel: Tensor,
        noise: Tensor,
        cursor: Cursor,
        trim: tuple[int, int] = (0, 0),
        extent: Extent | None = None,
    ) -> tuple[Tensor, Tensor]:
        mask = None if extent is None else extent.mask(mel.shape[2])
        f0: Tensor = self.f0_predictor(mel, mask)
        source, carried = self.m_source(f0, noise, cursor)
        return self.decode(mel, source, trim, extent), carried
