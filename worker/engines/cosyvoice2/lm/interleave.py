"""Speaking a text that still arrives: text and speech tokens are interleaved in one sequence.

The model was trained on sequences of five text tokens followed by fifteen speech tokens, and so on
(CosyVoice 2, arXiv:2412.10117, section 2.3). It decodes a fill token to ask for more text. When the
text has ended, its remaining tokens and the task embedding follow, then speech to its end.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a part of the sequence consists of."""

    START = "start"
    TEXT = "text"
    TASK = "task"
    SPEECH = "speech"


@dataclass(frozen=True)
class Reading:
    """What the language model prefills next, and how decoding goes on after it.

    ``parts`` are token ids by kind. ``fill_at`` is the position at which the decoder emits the fill
    token, counted in decoded tokens from the utterance's start, fill tokens included; -1: at none,
    and the end token is allowed.
    """

    parts: tuple[tuple[Kind, tuple[int, ...]], ...]
    fill_at: int

    @property
    def final(self) -> bool:
        """Whether all text has been read."""
        return self.fill_at < 0


class Interleave:
    """The order in which an utterance's text and speech are prefilled.

    The prompt's speech is interleaved with the prompt's text and, if that is shorter, with the
    start of the utterance's text; decoding begins once all of it has been prefilled. If the text
    ends before the prompt's speech does, the remaining speech follows the task embedding, as for
    text that is not streamed. (Upstream drops it, and reads one speech token twice if the text ends
    after a fill token.)

    ``pushed`` counts text tokens, ``closed`` says that no more will come, and ``final`` that all
    have been prefilled.

    Args:
        text: The prompt's text tokens.
        speech: The prompt's speech tokens.
        mix: How many text tokens, and how many speech tokens follow them.
    """

    def __init__(self, text: list[int], speech: list[int], mix: tuple[int, int]) -> None:
        self._text = deque(text)
        self._speech = deque(speech)
        self._mix = mix
        self._parts: list[tuple[Kind, tuple[int, ...]]] = [(Kind.START, ())]
        self._begun = False
        self.closed = False
        self.final = False
        self.pushed = 0
        self._fill_at = (len(speech) // mix[1] + 1) * mix[1] - len(speech)

    def push(self, tokens: list[int]) -> None:
        """Add text tokens to be spoken."""
        self._text.extend(tokens)
        self.pushed += len(tokens)

    def close(self) -> None:
        """Mark the text as complete."""
        self.closed = True

    def next(self, decoded: int) -> Reading | None:
        """What to prefill now, or ``None`` if more text has to arrive first.

        Call it before decoding starts, and each time a fill token was decoded.

        Args:
            decoded: Tokens decoded so far, fill tokens included.
        """
        if self.final:
            return None
        text_tokens, speech_tokens = self._mix
        while self._speech and len(self._text) >= text_tokens:
            self._take(Kind.TEXT, self._text, text_tokens)
            self._take(Kind.SPEECH, self._speech, speech_tokens)
        if not self._speech and self._take_text():
            if self._begun:
                self._fill_at = decoded + speech_tokens
            return self._reading(self._fill_at)
        if self.closed:
            self.final = True
            self._take(Kind.TEXT, self._text, len(self._text))
            self._parts.append((Kind.TASK, ()))
            self._take(Kind.SPEECH, self._speech, len(self._speech))
            return self._reading(-1)
        return None

    def _take_text(self) -> bool:
        """Queue the text for the next speech tokens; return whether there is any."""
        if not self._begun and len(self._parts) > 1:
            return True  # the prompt's text is already ahead of its speech
        if len(self._text) < self._mix[0]:
            return False
        self._take(Kind.TEXT, self._text, self._mix[0])
        return True

    def _take(self, kind: Kind, queue: deque[int], count: int) -> None:
        taken = tuple(queue.popleft() for _ in range(min(count, len(queue))))
        if taken:
            self._parts.append((kind, taken))

    def _reading(self, fill_at: int) -> Reading:
        self._begun = True
        parts, self._parts = tuple(self._parts), []
        return Reading(parts, fill_at)
