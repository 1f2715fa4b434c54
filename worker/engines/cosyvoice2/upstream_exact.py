"""Upstream's streaming algorithm, to the last rounding (option ``upstream_exact``).

Each chunk is computed from the utterance's start, with hops that double; the last pass recomputes
the whole utterance without the streaming mask; the vocoder starts anew for each chunk, and chunks
are cross-faded. It serves for comparison: it costs far more than blocks, renders one utterance at a
time, and its seams are audible.
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
"""Tokens of the chunks after the first: upstream's hop of 25 doubles twice. The last repeats."""


class UpstreamExactStage:
    """Renders as upstream does, with the interface of ``BlockStage``.

    Args:
        flow: Makes mel frames.
        vocoder: Makes samples.
    """

    batch = 1
    batches = (1,)
    ready = True

    def __init__(self, flow: Flow, vocoder: Vocoder) -> None:
        self.evict: Callable[[], bool] = lambda: False
        self._flow = flow
        self._vocoder = vocoder
        self._in_flight: dict[Utterance, UpstreamStreaming] = {}
        self._pieces: list[AudioPiece] = []

    def prepare(self, voice: Voice) -> Voice:
        """Return the voice itself: nothing is cached."""
        return voice

    def release(self, prepared: Voice) -> None:
        """Do nothing: nothing is cached."""

    def chunking(self, speaker: Speaker) -> Chunking:
        """The first chunk completes the prompt's last block and adds one block."""
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
        """Yield the samples that ``start`` rendered."""
        pieces, self._pieces = self._pieces, []
        for piece in pieces:
            yield piece
            if piece.utterance.done:
                self.drop(piece.utterance)

    def holds(self, utterance: Utterance) -> bool:
        """Whether the utterance is being rendered."""
        return utterance in self._in_flight

    def drop(self, utterance: Utterance) -> None:
        """Stop rendering an utterance."""
        self._in_flight.pop(utterance, None)

    def warm_up(self, blocks: int) -> None:
        """Do nothing: every chunk has another shape, so no graph can be captured."""

    def dry_run(self, rows: int) -> None:
        """Do nothing: a chunk's time depends on the length of its utterance."""

    def _chunk(self, sequence: TurnSequence, utterance: Utterance) -> torch.Tensor:
        if utterance not in self._in_flight:
            if sequence.spec.speed != 1.0:
                raise CannotSpeakError("speed: upstream streams at 1.0 alone (upstream_exact)")
            self._in_flight[utterance] = UpstreamStreaming(
                self._vocoder, self._noise(sequence, utterance)
            )
        lookahead = utterance.chunking.lookahead
        end = utterance.chunking.end(utterance.chunks)
        # Upstream takes its last pass when less than a chunk and its look-ahead is left.
        final = len(utterance.tokens) < end + lookahead
        spoken = utterance.tokens if final else utterance.tokens[: end + lookahead]
        mel = self._mel(sequence.speaker.voice, spoken, final=final)
        new = mel[:, :, self._flow.sizes.frames_per_token * utterance.rendered :]
        samples = self._in_flight[utterance].push(new, final)
        utterance.advance(1)
        if final:
            utterance.rendered = len(utterance.tokens)
        return samples.reshape(-1).cpu()

    def _noise(self, sequence: TurnSequence, utterance: Utterance) -> Noise:
        """Seeded noise for the utterance; upstream's is unseeded."""
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
            # Upstream's last pass has no streaming mask.
            streaming=not final,
            final=final,
        )
        return mel[:, len(voice.mel) :].transpose(1, 2)
