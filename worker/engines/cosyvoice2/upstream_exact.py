"""Upstream's own way from tokens to samples: each chunk anew, and the whole again at the end.

What upstream's streaming does, to the last rounding: hops that double, a last pass without the
streaming mask over the whole utterance, a vocoder that starts afresh with each chunk and a
cross-fade. Here for comparison: dearer than blocks by far, one utterance at a time, and audible at
the seams.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from voicefleet.worker.engines.cosyvoice2.flow.model import Flow
from voicefleet.worker.engines.cosyvoice2.rendering import AudioPiece
from voicefleet.worker.engines.cosyvoice2.turn_sequence import Chunking, TurnSequence, Utterance
from voicefleet.worker.engines.cosyvoice2.vocoder.model import Vocoder
from voicefleet.worker.engines.cosyvoice2.vocoder.noise import noise_offset
from voicefleet.worker.engines.cosyvoice2.vocoder.upstream import Noise, UpstreamStreaming
from voicefleet.worker.engines.cosyvoice2.voices.speaker import Speaker
from voicefleet.worker.engines.cosyvoice2.voices.voice import Voice
from voicefleet.worker.engines.protocol import CannotSpeakError

HOPS = (50, 100)
"""Tokens of the chunks after the first, as upstream's hop of 25 doubles; the last repeats."""


class UpstreamExactStage:
    """Renders as upstream does. The same interface as ``BlockStage``.

    Args:
        flow: The model.
        vocoder: What follows.
    """

    batch = 1
    batches = (1,)
    ready = True

    def __init__(self, flow: Flow, vocoder: Vocoder) -> None:
        self.evict: Callable[[], bool] = lambda: False
        self._flow = flow
        self._vocoder = vocoder
        self._pending_output: dict[Utterance, UpstreamStreaming] = {}
        self._pieces: list[AudioPiece] = []

    def prepare(self, voice: Voice) -> Voice:
        """Nothing is kept of a voice."""
        return voice

    def release(self, prepared: Voice) -> None:
        """Nothing is to be freed."""

    def chunking(self, speaker: Speaker) -> Chunking:
        """The first chunk fills the prompt's last block up and has one more."""
        encoder = self._flow.sizes.encoder
        pad = -speaker.flow_tokens % encoder.chunk
        return Chunking(encoder.chunk + pad, HOPS, encoder.lookahead)

    def start(self, sequences: Sequence[TurnSequence]) -> None:
        """Render the next chunk of the first sequence's utterance."""
        for sequence in sequences[: self.batch]:
            utterance = sequence.rendering
            assert utterance is not None
            samples = self._chunk(sequence, utterance)
            self._pieces.append(AudioPiece(sequence, utterance, samples.numpy()))

    def collect(self) -> Iterator[AudioPiece]:
        """What was started."""
        pieces, self._pieces = self._pieces, []
        for piece in pieces:
            yield piece
            if piece.utterance.done:
                self.drop(piece.utterance)

    def holds(self, utterance: Utterance) -> bool:
        """Whether something of the utterance is still under way."""
        return utterance in self._pending_output

    def drop(self, utterance: Utterance) -> None:
        """Forget an utterance."""
        self._pending_output.pop(utterance, None)

    def warm_up(self, blocks: int) -> None:
        """Nothing is captured: every chunk has a shape of its own."""

    def dry_run(self, rows: int) -> None:
        """Nothing to time: what a chunk costs depends on all before it."""

    def _chunk(self, sequence: TurnSequence, utterance: Utterance) -> torch.Tensor:
        if utterance not in self._pending_output:
            if sequence.spec.speed != 1.0:
                raise CannotSpeakError("speed: upstream streams at 1.0 alone (upstream_exact)")
            self._pending_output[utterance] = UpstreamStreaming(
                self._vocoder, self._noise(sequence, utterance)
            )
        lookahead = utterance.chunking.lookahead
        end = utterance.chunking.end(utterance.chunks)
        # Upstream takes its last pass when what is left is no whole chunk with look-ahead.
        final = len(utterance.tokens) < end + lookahead
        spoken = utterance.tokens if final else utterance.tokens[: end + lookahead]
        mel = self._mel(sequence.speaker.voice, spoken, final=final)
        new = mel[:, :, self._flow.sizes.frames_per_token * utterance.rendered :]
        samples = self._pending_output[utterance].push(new, final)
        utterance.advance(1)
        if final:
            utterance.rendered = len(utterance.tokens)
        return samples.reshape(-1).cpu()

    def _noise(self, sequence: TurnSequence, utterance: Utterance) -> Noise:
        """Upstream's noise is unseeded; here it is the utterance's own."""
        generator = torch.Generator().manual_seed(
            noise_offset(sequence.spec.seed, utterance.number)
        )
        width = self._vocoder.sizes.harmonics + 1
        device = self._flow.device
        return lambda n: torch.randn(1, n, width, generator=generator).to(device)

    def _mel(self, voice: Voice, spoken: Sequence[int], *, final: bool) -> torch.Tensor:
        device = self._flow.device
        tokens = np.concatenate((voice.flow_tokens, np.asarray(spoken, dtype=np.int64)))
        mel = self._flow.render(
            torch.from_numpy(tokens)[None].to(device),
            torch.tensor([len(tokens)], device=device),
            torch.from_numpy(voice.mel)[None].to(device, self._flow.dtype),
            torch.from_numpy(voice.speaker)[None].to(device),
            # Upstream leaves its last pass to see everything.
            streaming=not final,
            final=final,
        )
        return mel[:, len(voice.mel) :].transpose(1, 2)
