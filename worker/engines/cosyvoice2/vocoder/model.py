"""Renders mel frames to samples, at once or in windows that join without a seam.

A window computes the frames that it keeps and the network's receptive field on both sides. The
phase of the fundamental is carried from window to window, and noise is read by position, so that
the kept samples equal those of the whole utterance, whatever the windows. ``windows`` plans them.
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

    ``rows_apart``: on the CPU, compute the rows of a batch one by one. Kernels there sum in an
    order that depends on the batch, and a row's samples must not.
    """

    _noise: Tensor

    def __init__(self, sizes: VocoderSizes, rows_apart: bool = True) -> None:
        super().__init__(sizes)
        self.rows_apart = rows_apart
        table = noise_table(sizes.sample_rate, sizes.harmonics + 1)
        self.register_buffer("_noise", table, persistent=False)

    def optimise(self) -> None:
        """Prepare the weights. Call once they are on their device; a second call does no harm.

        The f0 predictor goes to float64, so that two windows agree on a frame's pitch: the phase
        sums up their differences over an utterance.
        """
        self.f0_predictor.double()
        for module in self.modules():
            if isinstance(module, Snake):
                module.optimise()

    def waveform(self, mel: Tensor, noise: Tensor, phase: Tensor | None = None) -> Tensor:
        """Render whole utterances of one length.

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
        """Render one window of each of ``B`` utterances. Can be captured in a CUDA graph.

        Args:
            mel: Log-mel ``[B, W, mel_bands]`` float32. Padding may hold any finite values.
            noise_offset: Each utterance's offset from ``noise.noise_offset``: ``[B]`` int64.
            cursor: The windows' positions, and the phase carried to them.
            trim: Frames on the left and right whose samples are not needed. The same for all rows,
                and fixed in a graph.
            filled: For windows that hold whole utterances: how many frames these have, ``[B]``
                int64. Samples after them are undefined. Without ``trim``.

        Returns:
            Samples ``[B, (W - sum(trim)) * hop]`` float32 at ``sizes.sample_rate``, of which
            ``Window.kept`` selects those to keep, and the phase before frame ``cursor.until``:
            ``[B]`` float64, in cycles.
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
