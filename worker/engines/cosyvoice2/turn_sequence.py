"""A turn as the engine schedules it: a sequence of utterances, from text tokens to samples."""

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from voicefleet.worker.engines.cosyvoice2.lm.interleave import Interleave
from voicefleet.worker.engines.protocol import Mark, TurnSpec

if TYPE_CHECKING:
    from voicefleet.worker.engines.cosyvoice2.voices.speaker import Conditioning, Speaker

SPEAKING_AT_ONCE = 2
"""Utterances of one turn in progress: while one is rendered, the next is decoded."""


@dataclass(frozen=True)
class Chunking:
    """Where an utterance's tokens are cut into chunks that are rendered one after another.

    The first chunk ends at token ``first``, the next ones ``hops[0]``, ``hops[1]``, ... tokens
    later; the last hop repeats. ``first`` may be 0 or less: the chunk then lies in the prompt's
    last, unfinished block. A chunk can be rendered once ``lookahead`` tokens after it are decoded,
    or once decoding has ended.
    """

    first: int
    hops: tuple[int, ...]
    lookahead: int

    def end(self, chunk: int) -> int:
        """The token at which chunk number ``chunk`` (from 0) ends."""
        repeated = max(0, chunk - len(self.hops))
        return self.first + sum(self.hops[:chunk]) + repeated * self.hops[-1]


@dataclass(eq=False)
class StreamedText:
    """The text of an utterance that is spoken while its text still arrives.

    ``marks`` are its later segments, each with the estimated speech token at which it begins;
    ``characters`` counts the text's characters.
    """

    interleave: Interleave
    marks: deque[tuple[int, Mark]] = field(default_factory=deque[tuple[int, Mark]])
    characters: int = 0


@dataclass(eq=False)
class Utterance:
    """A piece of text that is decoded and rendered as one.

    Attributes:
        number: Its number in the turn; it seeds the utterance's random draws.
        text: Text tokens without the prompt's. Empty: the utterance is a pause.
        marks: The segments that begin with its first sample.
        min_tokens: The fewest speech tokens before the end token may come.
        max_tokens: The most speech tokens.
        chunking: Where its tokens are cut for rendering.
        tokens: The speech tokens decoded so far.
        decoded: Whether ``tokens`` is complete.
        rendered: How many tokens have been rendered, in ``chunks`` chunks.
        span: How many chunks the next rendering covers at once.
        streamed: Its text, where that still arrives while it is spoken.
        stalled: Whether it waits for more text.
        samples_sent: How many samples were handed to the worker.
    """

    number: int
    text: list[int]
    marks: tuple[Mark, ...]
    min_tokens: int
    max_tokens: int
    chunking: Chunking
    tokens: list[int] = field(default_factory=list[int])
    decoded: bool = False
    rendered: int = 0
    chunks: int = 0
    span: int = 1
    streamed: "StreamedText | None" = None
    stalled: bool = False
    samples_sent: int = 0

    @property
    def missing(self) -> int:
        """How many tokens the next ``span`` chunks still lack."""
        return 0 if self.decoded else max(0, self.needed - len(self.tokens))

    @property
    def needed(self) -> int:
        """How many tokens in total the next ``span`` chunks need."""
        return self.chunking.end(self.chunks + self.span - 1) + self.chunking.lookahead

    @property
    def ready(self) -> bool:
        """Whether the next chunks can be rendered now."""
        return not self.done and not self.missing

    @property
    def done(self) -> bool:
        """Whether all of it has been rendered."""
        return self.decoded and self.rendered >= len(self.tokens)

    def advance(self, chunks: int) -> None:
        """Record that ``chunks`` more chunks were rendered."""
        self.chunks += chunks
        end = self.chunking.end(self.chunks - 1)
        self.rendered = max(0, min(end, len(self.tokens)))


@dataclass(eq=False)
class TurnSequence:
    """One turn in the engine.

    Attributes:
        turn: The turn's number, given by the worker.
        spec: Voice, seed, speed and mode.
        speaker: The voice, prepared for the renderer.
        conditioning: The token ids that precede the text in the language model.
        slot: The decoder's slot, and with it the KV cache's.
        rate: The model's sample rate in Hz; ``produced`` and ``consumed`` count samples at it.
        waiting: Utterances that have not begun.
        speaking: Utterances in progress; only the last can still be in the decoder.
        ended: Whether no further segment comes.
        started_at: When the first sample was sent, on the monotonic clock in seconds.
        writing: The utterance whose text is not complete yet.
    """

    turn: int
    spec: TurnSpec
    speaker: "Speaker"
    conditioning: "Conditioning"
    slot: int
    rate: int
    waiting: deque[Utterance] = field(default_factory=deque[Utterance])
    speaking: deque[Utterance] = field(default_factory=deque[Utterance])
    ended: bool = False
    produced: int = 0
    consumed: int = 0
    started_at: float | None = None
    writing: Utterance | None = None

    @property
    def finished(self) -> bool:
        """Whether no utterance is left, and none will come."""
        return self.ended and not self.waiting and not self.speaking

    @property
    def ahead_s(self) -> float:
        """Seconds of audio that were produced and not consumed yet."""
        return (self.produced - self.consumed) / self.rate

    def slack_s(self, now: float) -> float:
        """Seconds until the listener runs out of audio; negative before the first sample.

        A listener plays in real time, however fast it takes the audio.
        """
        if self.started_at is None:
            return -1.0
        played_until = self.started_at + self.produced / self.rate
        return max(played_until - now, self.ahead_s)

    @property
    def decoding(self) -> Utterance | None:
        """The utterance in the decoder's slot, if any."""
        if self.speaking and not self.speaking[-1].decoded:
            return self.speaking[-1]
        return None

    @property
    def next_utterance(self) -> Utterance | None:
        """The utterance whose prefill could start now, if any."""
        if self.waiting and self.decoding is None and len(self.speaking) < SPEAKING_AT_ONCE:
            return self.waiting[0]
        return None

    @property
    def rendering(self) -> Utterance | None:
        """The utterance that is rendered next, if any."""
        return self.speaking[0] if self.speaking else None
