"""From speech tokens to samples, for all sequences: flow blocks, then vocoder windows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceOOMError
from voicefleet.worker.engines.cosyvoice2.flow.block_manager import CacheFullError
from voicefleet.worker.engines.cosyvoice2.flow.blocks import BlockRenderer
from voicefleet.worker.engines.cosyvoice2.flow.step_inputs import StepInputs
from voicefleet.worker.engines.cosyvoice2.flow.utterance import Block, FlowPrompt, Rendering
from voicefleet.worker.engines.cosyvoice2.graphs import Graphs
from voicefleet.worker.engines.cosyvoice2.hyperparameters import FlowSizes
from voicefleet.worker.engines.cosyvoice2.turn_sequence import Chunking, TurnSequence, Utterance
from voicefleet.worker.engines.cosyvoice2.vocoding import RenderedWindows, Track, VocoderStage
from voicefleet.worker.engines.cosyvoice2.voices.speaker import Speaker
from voicefleet.worker.engines.cosyvoice2.voices.voice import Voice
from voicefleet.worker.engines.protocol import Samples

LONGEST_SPAN = 4
"""The most blocks rendered at once of an utterance without a cache: 4 s of audio."""


USUAL_BLOCKS = 6
"""Blocks of context of a block in the middle of an utterance, the prompt's included."""


@dataclass(frozen=True)
class AudioPiece:
    """Rendered samples of an utterance: float32 ``[n]`` at the model's rate."""

    sequence: TurnSequence
    utterance: Utterance
    samples: Samples


@dataclass(eq=False)
class _InFlight:
    """An utterance that is being rendered: its progress through the flow and the vocoder."""

    sequence: TurnSequence
    utterance: Utterance
    rendering: Rendering
    track: Track


class BlockStage:
    """Renders the next block of many utterances in one batch.

    Each block is computed once, and its keys, values and states are cached. If the cache is full,
    ``evict`` is called to drop unused voices, until it returns ``False``. An utterance that still
    finds no room is rendered without a cache: from its beginning each time, in spans that grow,
    with the same result.

    Args:
        renderer: Renders the flow's blocks.
        vocoder: Turns the blocks' mel frames into samples.
        batches: Batch sizes, ascending.
        graphs: Runs the flow's steps.
    """

    def __init__(
        self,
        renderer: BlockRenderer,
        vocoder: VocoderStage,
        batches: Sequence[int],
        graphs: Graphs,
    ) -> None:
        self._renderer = renderer
        self._vocoder = vocoder
        self._batches = tuple(batches)
        self._graphs = graphs
        self._in_flight: dict[Utterance, _InFlight] = {}
        self._by_track: dict[Track, _InFlight] = {}
        self._pending_output: list[RenderedWindows] = []
        self.evict: Callable[[], bool] = lambda: False
        # Utterances with more pages are rendered one by one: see ``warm_up``.
        self._together = renderer.page_buckets[-1]
        renderer.run = self._run

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes, ascending."""
        return self._batches

    @property
    def batch(self) -> int:
        """The largest batch size."""
        return self._batches[-1]

    @property
    def ready(self) -> bool:
        """Whether all samples that were started have arrived on the host."""
        return all(rendered.samples.ready for rendered in self._pending_output)

    def prepare(self, voice: Voice) -> FlowPrompt:
        """Render a voice's prompt once, for all turns that speak with it.

        Raises:
            CosyVoiceOOMError: The cache has no room for its blocks.
        """
        mel = torch.from_numpy(voice.mel)
        speaker = torch.from_numpy(voice.speaker)
        try:
            return self._renderer.prompt(voice.flow_tokens.tolist(), mel, speaker)
        except CacheFullError as error:
            raise CosyVoiceOOMError(f"voice {voice.name}: {error} (flow_cache_mb)") from None

    def release(self, prepared: FlowPrompt) -> None:
        """Free a voice's prompt."""
        self._renderer.release(prepared)

    def chunking(self, speaker: Speaker) -> Chunking:
        """Cut utterances at the flow's blocks; the first chunk completes the prompt's last one."""
        prompt: FlowPrompt = speaker.flow_prompt
        encoder = self._sizes.encoder
        first = (len(prompt.pages) + 1) * encoder.chunk - len(prompt.tokens)
        return Chunking(first, (encoder.chunk,), encoder.lookahead)

    def start(self, sequences: Sequence[TurnSequence]) -> None:
        """Start rendering the next chunk of each sequence's utterance."""
        entries = [self._entry_of(sequence) for sequence in sequences]
        cached = [entry for entry in entries if entry.rendering.state is not None]
        while len(cached) > self._renderer.free_pages and self.evict():
            pass
        cached = cached[: self._renderer.free_pages]
        uncached = [entry for entry in entries if entry not in cached]
        together = [v for v in cached if v.rendering.done < self._together]
        if together:
            rows = next(size for size in self._batches if size >= len(together))
            self._render(together, rows)
        for entry in cached:
            if entry not in together:
                self._render([entry], 1)
        if uncached:
            blocks = [_next(entry) for entry in uncached]
            for entry, block, mel in zip(
                uncached, blocks, self._renderer.recompute(blocks), strict=True
            ):
                self._advance(entry, block, mel)
                entry.utterance.span = min(2 * entry.utterance.span, LONGEST_SPAN)
        self._pending_output += self._vocoder.render([entry.track for entry in entries])

    def collect(self) -> Iterator[AudioPiece]:
        """Wait for all samples that were started, and yield them in order."""
        pending, self._pending_output = self._pending_output, []
        for rendered in pending:
            samples = rendered.samples.wait().numpy()
            for track, row, kept in rendered.pieces:
                entry = self._by_track.get(track)
                if entry is not None:
                    yield AudioPiece(entry.sequence, entry.utterance, samples[row, kept])
        for entry in [v for v in self._in_flight.values() if v.utterance.done]:
            self.drop(entry.utterance)

    def holds(self, utterance: Utterance) -> bool:
        """Whether the utterance is being rendered."""
        return utterance in self._in_flight

    def drop(self, utterance: Utterance) -> None:
        """Stop rendering an utterance, and free its pages and state."""
        entry = self._in_flight.pop(utterance, None)
        if entry is not None:
            del self._by_track[entry.track]
            self._renderer.close(entry.rendering)

    def warm_up(self, blocks: int) -> None:
        """Capture every graph that can be needed, so that none is captured in service.

        Batches of every size are captured for utterances of up to ``blocks`` blocks, prompt
        included. Longer ones are rare, and every row of a batch would cost as much as the longest:
        from now on each of those is rendered alone.
        """
        buckets = self._renderer.page_buckets
        self._together = next(size for size in buckets if size >= min(blocks, buckets[-1]))
        if self._graphs.enabled:
            for pages in buckets:
                # Prompts are rendered with one row too.
                batches = {1, *self._batches} if pages <= self._together else {1}
                for rows in sorted(batches):
                    self._idle(rows, pages)
        self._vocoder.warm_up()

    def dry_run(self, rows: int) -> None:
        """Run one idle batch, to time it."""
        pages = next(size for size in self._renderer.page_buckets if size >= USUAL_BLOCKS)
        for _ in range(rows if self._renderer.rows_apart else 1):
            self._idle(1 if self._renderer.rows_apart else rows, pages)
        self._vocoder.dry_run(rows)

    @property
    def _sizes(self) -> FlowSizes:
        return self._renderer.sizes

    def _entry_of(self, sequence: TurnSequence) -> _InFlight:
        utterance = sequence.rendering
        assert utterance is not None
        entry = self._in_flight.get(utterance)
        if entry is None:
            prompt: FlowPrompt = sequence.speaker.flow_prompt
            rendering = self._renderer.begin(prompt)
            while rendering is None and self.evict():
                rendering = self._renderer.begin(prompt)
            rendering = rendering or self._renderer.begin(prompt, cached=False)
            assert rendering is not None
            track = self._track(sequence, utterance)
            entry = _InFlight(sequence, utterance, rendering, track)
            self._in_flight[utterance] = self._by_track[track] = entry
        return entry

    def _track(self, sequence: TurnSequence, utterance: Utterance) -> Track:
        sizes, chunking = self._sizes, utterance.chunking
        # The first block may hold only prompt tokens, none of the utterance's.
        first = next(end for end in map(chunking.end, range(3)) if end > 0)
        return Track(
            self._vocoder,
            first=sizes.frames_per_token * first,
            hop=sizes.frames_per_token * chunking.hops[0],
            margin=sizes.frames_per_token * chunking.lookahead,
            speed=sequence.spec.speed,
            seed=sequence.spec.seed,
            number=utterance.number,
        )

    def _render(self, entries: Sequence[_InFlight], rows: int) -> None:
        """Render the next block of each entry, in a batch of ``rows``."""
        blocks = [_next(entry) for entry in entries]
        mels = self._renderer.render(blocks, rows)
        for entry, block, mel in zip(entries, blocks, mels, strict=True):
            self._advance(entry, block, mel[block.first : block.frames])

    def _advance(self, entry: _InFlight, block: Block, mel: Tensor) -> None:
        utterance = entry.utterance
        utterance.advance(block.count)
        entry.track.push(mel, utterance.done)

    def _idle(self, rows: int, pages: int) -> None:
        """Run a step that affects no utterance."""
        inputs = self._renderer.inputs(rows, pages)
        inputs.make_idle()
        self._run(inputs)

    def _run(self, inputs: StepInputs) -> Tensor:
        """Run one step of the flow from its graph, capturing it if needed."""
        key = ("flow", inputs.batch, inputs.pages.shape[1])
        work = lambda: self._renderer.step(inputs)  # noqa: E731
        if not self._graphs.has(key):
            live = inputs.integers.clone()
            self._graphs.prepare(key, work, inputs.make_idle)
            inputs.integers.copy_(live)
        return self._graphs.run(key, work)


def _next(entry: _InFlight) -> Block:
    utterance = entry.utterance
    block = entry.rendering.next(utterance.tokens, utterance.decoded, utterance.span)
    assert block is not None, "an utterance is rendered when it is ready"
    return block
