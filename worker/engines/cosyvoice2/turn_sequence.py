"""What the loop knows of each turn: utterances on their way from text to samples."""

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from voicefleet.worker.engines.cosyvoice2.lm.interleave import Interleave
from voicefleet.worker.engines.protocol import Mark, TurnSpec

if TYPE_CHECKING:
    from voicefleet.worker.engines.cosyvoice2.voices.speaker import Conditioning, Speaker

SPEAKING_AT_ONCE = 2
"""Utterances of one turn in work: while one is rendered, the next is decoded."""


@dataclass(frozen=True)
class Chunking:
    """Where an utterance's tokens are cut into chunks that are rendered one after another.

    The first chunk ends at token ``first``, the others ``hops[0]``, ``hops[1]``, ... later, the
    last of them repeating. ``first`` may lie before the utterance, in the rest of its prompt. A
    chunk can be rendered when ``lookahead`` tokens behind it are there, or when no more will come.
    """

    first: int
    hops: tuple[int, ...]
    lookahead: int

    def end(self, chunk: int) -> int:
        """Where chunk number ``chunk`` ends, from 0."""
        rest = max(0, chunk - len(self.hops))
        return self.first + sum(self.hops[:chunk]) + rest * self.hops[-1]


@dataclass(eq=False)
class StreamedText:
    """The text of an utterance that is spoken while it is written.

    ``marks`` are its later segments, each with the speech token at which it is about to be heard;
    ``characters`` are those of its text.
    """

    interleave: Interleave
    marks: deque[tuple[int, Mark]] = field(default_factory=deque[tuple[int, Mark]])
    characters: int = 0


@dataclass(eq=False)
class Utterance:
    """A piece of text that is decoded and rendered as one.

    ``number`` counts the turn's pieces and seeds its randomness. ``text`` are text tokens without
    the prompt's; none of them: a pause. ``marks`` open its audio. ``decoded``: ``tokens`` are all
    there. ``rendered`` tokens in ``chunks`` chunks are on their way to the listener, and the next
    ``span`` chunks follow in one. Where its text is ``streamed`` it may be ``stalled``: it waits
    for more of it. ``samples_sent`` are samples handed on.
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
        """Tokens still to be decoded for its next ``span`` chunks."""
        return 0 if self.decoded else max(0, self.needed - len(self.tokens))

    @property
    def needed(self) -> int:
        """Tokens, in all, that its next ``span`` chunks wait for."""
        return self.chunking.end(self.chunks + self.span - 1) + self.chunking.lookahead

    @property
    def ready(self) -> bool:
        """Whether its next chunks can be rendered."""
        return not self.done and not self.missing

    @property
    def done(self) -> bool:
        """Whether all of it has been rendered."""
        return self.decoded and self.rendered >= len(self.tokens)

    def advance(self, chunks: int) -> None:
        """So many more chunks have been rendered."""
        self.chunks += chunks
        end = self.chunking.end(self.chunks - 1)
        self.rendered = max(0, min(end, len(self.tokens)))


@dataclass(eq=False)
class TurnSequence:
    """One turn in the engine.

    Sample counts are at the model's rate. ``slot`` is its place in the decoder. ``waiting`` are
    utterances that have not begun; ``speaking`` those in work, the last of them in the decoder.
    ``writing`` is the one whose text is not complete.
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
        """Whether everything has been said."""
        return self.ended and not self.waiting and not self.speaking

    @property
    def ahead_s(self) -> float:
        """Seconds of audio made that the listener's side has not taken."""
        return (self.produced - self.consumed) / self.rate

    def slack_s(self, now: float) -> float:
        """Seconds until the listener runs dry; a first chunk is always late already.

        Taken audio is played in real time, however fast it is taken.
        """
        if self.started_at is None:
            return -1.0
        played_until = self.started_at + self.produced / self.rate
        return max(played_until - now, self.ahead_s)

    @property
    def decoding(self) -> Utterance | None:
        """The utterance that its decoder slot works on."""
        if self.speaking and not self.speaking[-1].decoded:
            return self.speaking[-1]
        return None

    @property
    def next_utterance(self) -> Utterance | None:
        """The utterance that could begin to be decoded now."""
        if self.waiting and self.decoding is None and len(self.speaking) < SPEAKING_AT_ONCE:
            return self.waiting[0]
        return None

    @property
    def rendering(self) -> Utterance | None:
        """The utterance whose audio is due."""
        return self.speaking[0] if self.speaking else None
