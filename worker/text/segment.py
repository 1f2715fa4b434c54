"""Cuts streaming text into segments, which an engine speaks one after another."""

from voicefleet.worker.engines.protocol import Segment, SegmentLimits
from voicefleet.worker.text.breaks import clause_ends, last_word_end, within_word
from voicefleet.worker.text.normalise import normalise, speakable
from voicefleet.worker.text.sentences import NeedsMoreTextError, reads_complete, sentence_end


class Segmenter:
    """Finds a turn's segments while its text arrives.

    A segment is a sentence. A sentence longer than ``max_chars`` is cut at clause ends, else
    between words, and within a word only if that alone is too long. The turn's first segment is cut
    earlier, at a clause end before ``first_chars``, unless the sentence is hardly longer.

    The same text gives the same segments, however it is split into pieces, if ``flush`` and
    ``settle`` are called at the same places: boundaries depend on content, never on time.
    """

    def __init__(self, limits: SegmentLimits) -> None:
        self._max = limits.max_chars
        self._first = limits.first_chars
        self._text = ""  # not in a segment yet
        self._start = 0  # its offset in the turn's text
        self._index = 0

    def push(self, text: str) -> list[Segment]:
        """Add text; return the segments that it completes."""
        self._text += text
        return self._segments(final=False)

    def flush(self) -> list[Segment]:
        """Return all remaining text, even an unfinished sentence. More may be pushed."""
        return self._segments(final=True)

    @property
    def reads_complete(self) -> bool:
        """Whether the remaining text reads as a complete sentence."""
        return reads_complete(self._text)

    def settle(self) -> list[Segment]:
        """Return the remaining text if it reads as a complete sentence. More may be pushed."""
        return self.flush() if self.reads_complete else []

    def _segments(self, *, final: bool) -> list[Segment]:
        found: list[Segment] = []
        while True:
            self._drop(len(self._text) - len(self._text.lstrip()))
            if not self._text:
                return found
            try:
                length, sentence = self._next(final=final)
            except NeedsMoreTextError:
                return found
            spoken = normalise(self._text[:length])
            # Text with nothing to speak (an emoji, a rule) gives no segment.
            if speakable(spoken):
                end = self._start + length
                found.append(Segment(self._index, spoken, self._start, end, open=not sentence))
                self._index += 1
            self._drop(length)

    def _drop(self, count: int) -> None:
        self._text = self._text[count:]
        self._start += count

    def _next(self, *, final: bool) -> tuple[int, bool]:
        """The length of the next segment, and whether a sentence ends with it."""
        # A first sentence up to a quarter too long stays whole, to leave no tail of two words.
        whole = self._first + self._first // 4
        if self._index == 0 and whole < self._max:
            length = sentence_end(self._text, whole, final=final)
            if length:
                return length, True
            length = self._first_cut()
            if length:
                return length, False
        tail = min(16, self._max // 4)
        length = sentence_end(self._text, self._max + tail, final=final)
        if length and length <= self._max:
            return length, True
        return self._cut(min(self._max, length - tail) if length else self._max), False

    def _first_cut(self) -> int | None:
        """The earliest clause end that makes a segment long enough, else the last word end."""
        ends = clause_ends(self._text, self._first // 3, self._first + self._first // 8)
        return ends[0] if ends else last_word_end(self._text, self._first)

    def _cut(self, high: int) -> int:
        """The latest suitable clause end up to ``high``, else a word end, else a cut in a word."""
        ends = clause_ends(self._text, self._max // 3, high)
        if ends:
            return ends[-1]
        return (
            last_word_end(self._text, high)
            or last_word_end(self._text, self._max)
            or within_word(self._text, self._max)
        )
