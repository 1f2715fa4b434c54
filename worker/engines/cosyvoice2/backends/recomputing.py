"""Rendering without cached blocks, for an estimator that takes whole utterances only.

Each span of an utterance is computed together with all frames before it, prompt included, in spans
that grow. The result equals that of cached blocks, at several times their cost.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from voicefleet.worker.engines.cosyvoice2.flow.blocks import BlockRenderer
from voicefleet.worker.engines.cosyvoice2.flow.model import Flow
from voicefleet.worker.engines.cosyvoice2.flow.step_inputs import SPARE_PAGE, SPARE_STATE
from voicefleet.worker.engines.cosyvoice2.flow.utterance import FlowPrompt, Rendering
from voicefleet.worker.engines.cosyvoice2.graphs import Graphs
from voicefleet.worker.engines.cosyvoice2.rendering import USUAL_BLOCKS, BlockStage
from voicefleet.worker.engines.cosyvoice2.vocoding import VocoderStage


class RecomputingRenderer(BlockRenderer):
    """Renders every span from the utterance's start, one utterance at a time.

    Args:
        flow: The model, with any estimator.
        max_blocks: The most blocks of an utterance, its prompt included.
    """

    def __init__(self, flow: Flow, *, max_blocks: int) -> None:
        super().__init__(flow, pages=0, states=0, max_blocks=max_blocks, rows_apart=True)

    @torch.no_grad()
    def prompt(self, tokens: Sequence[int], mel: Tensor, speaker: Tensor) -> FlowPrompt:
        """Make a voice's prompt. Nothing of it is computed yet.

        Raises:
            ValueError: As ``BlockRenderer.prompt``.
        """
        if len(mel) != 2 * len(tokens):
            raise ValueError(f"{len(mel)} mel frames for {len(tokens)} tokens")
        encoder = self.sizes.encoder
        blocks = max(0, len(tokens) - encoder.lookahead) // encoder.chunk
        if blocks >= self.max_blocks:
            raise ValueError(
                f"a prompt of {blocks} blocks, of which an utterance may have {self.max_blocks}"
            )
        mel = mel.to(self.flow.device, self.flow.dtype)
        voice = self.flow.speaker(speaker.to(self.flow.device)[None])[0]
        # The pages only count the prompt's blocks; they hold nothing.
        return FlowPrompt(tuple(tokens), mel, voice, (SPARE_PAGE,) * blocks, SPARE_STATE)

    def begin(self, prompt: FlowPrompt, *, cached: bool = False) -> Rendering | None:
        """Begin an utterance, never cached. Raises ``ValueError`` as ``BlockRenderer.begin``."""
        return super().begin(prompt, cached=False)

    def dry_run(self, blocks: int) -> None:
        """Render ``blocks`` blocks of zeros, and discard them."""
        chunk, device = self.sizes.encoder.chunk, self.flow.device
        size = torch.tensor([blocks * chunk], device=device)
        self.flow.render_own(
            torch.zeros(
                1, blocks * chunk + self.sizes.encoder.lookahead, dtype=torch.long, device=device
            ),
            size,
            size,
            torch.zeros(1, 0, self.sizes.mel_bands, dtype=self.flow.dtype, device=device),
            torch.zeros(1, self.sizes.mel_bands, dtype=self.flow.dtype, device=device),
            streaming=True,
        )


class RecomputingStage(BlockStage):
    """A ``BlockStage`` whose flow runs without CUDA graphs: every span has another shape."""

    def __init__(
        self,
        renderer: RecomputingRenderer,
        vocoder: VocoderStage,
        batches: Sequence[int],
        graphs: Graphs,
    ) -> None:
        super().__init__(renderer, vocoder, batches, graphs)
        self._whole = renderer

    def warm_up(self, blocks: int) -> None:
        """Render utterances of one to ``blocks`` blocks, and capture the vocoder."""
        for count in range(1, blocks + 1):
            self._whole.dry_run(count)
        self._vocoder.warm_up()

    def dry_run(self, rows: int) -> None:
        """Render ``rows`` utterances of zeros, to time them."""
        for _ in range(rows):
            self._whole.dry_run(USUAL_BLOCKS)
        self._vocoder.dry_run(rows)
