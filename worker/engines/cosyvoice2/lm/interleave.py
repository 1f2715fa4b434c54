"""Speaking a text that is still being written: text and speech take turns in one sequence.

The model is trained on sequences in which five text tokens are followed by fifteen of speech
(CosyVoice 2, arXiv:2412.10117, section 2.3). A fill token instead of speech asks for more text.
When the text has ended, its rest and the task embedding follow, and then speech to its end.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a stretch of the sequence is made of."""

    START = "start"
    TEXT = "text"
    TASK = "task"
    SPEECH = "speech"


@dataclass(frozen=True)
class Reading:
    """What the language model reads next, and how it goes on after it.

    ``parts`` are token ids by kind. ``fill_at`` is the number of the token that will be the fill
    token, counted from the utterance's start, fill tokens included; -1: none, the end may come.
    """

    parts: tuple[tuple[Kind, tuple[int, ...]], ...]
    fill_at: int

    @property
    def final(self) -> bool:
        """Whether all text has been read."""
        return self.fill_at < 0


class Interleave:
    """The order in which an utterance's text and speech are read.

    A prompt's speech is interleaved with its text and, where that is short, with the first of
    what is spoken: nothing is decoded before all of it has been read. Where the text ends before,
    the rest of the prompt follows the task embedding, as where text is not streamed. (Upstream
    drops that rest, and reads a speech token twice where the text ends after a fill token.)

    ``pushed`` counts text tokens, ``closed`` says that no more will come, and ``final`` that all
    have been read.

    Args:
        text: The prompt's text tokens.
        speech: The prompt's speech tokens.
        mix: Text tokens, and speech tokens that follow them.
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
        """More of the text to be spoken."""
        self._text.extend(tokens)
        self.pushed += len(tokens)

    def close(self) -> None:
        """The text has ended."""
        self.closed = True

    def next(self, decoded: int) -> Reading | None:
        """What to read now. ``None``: more text has to come first.

        Args:
            decoded: Tokens decoded so far, the fill tokens included. To be called before the
                first, and whenever a fill token was the last.
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
        """Take the text to decode speech for. Returns whether there is any."""
        if not self._begun and len(self._parts) > 1:
            return True  # a prompt has been read, and its text is ahead of its speech
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
