"""Cuts a turn's text into segments as it arrives."""

import math
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable

import anyio

from voicefleet.schemas.request import TextPiece
from voicefleet.worker.engines.protocol import Segment, SegmentLimits
from voicefleet.worker.text.segment import Segmenter

TEXT_TIMEOUT = "text_timeout"
"""The failure of streamed text that stopped arriving before its end."""

SETTLE = TextPiece(settle=True)
TIMEOUT = TextPiece(timeout=True)

TEXT_TOO_LONG = "text_too_long"
"""The failure of streamed text with more characters than a turn may have."""

MARK_AGAIN_S = 1.0
"""The time after which a mark is tried again if it had no effect, as when text came meanwhile."""

BACKLOG_CHARS = 10_000
"""The most text that waits here to be spoken; its source keeps the rest."""


class TextFeed:
    """Takes text in pieces and yields it in segments.

    Segments depend on the pieces and the limits alone, not on when pieces arrive, so that a worker
    that takes the turn over cuts the same ones. Decisions made by time become pieces too, called
    marks: if the engine waits for text and none comes, ``mark`` is called with a piece that settles
    or times out. By default it pushes the piece here; for streamed text it is set to a function
    that first appends the piece to the text stream, for later readers.

    Args:
        limits: The lengths of segments that the engine wants.
        timeout_s: Without text for this long, the turn ends once all its text has been spoken.
        most_chars: A turn with more text fails.
        settle_s: Without text for this long, waiting text that reads as a complete sentence is
            spoken. 0: never.
    """

    def __init__(
        self, limits: SegmentLimits, timeout_s: float, most_chars: int, settle_s: float = 0.0
    ) -> None:
        self._segmenter = Segmenter(limits)
        self._timeout_s = timeout_s
        self._settle_s = settle_s
        self._most_chars = most_chars
        self.mark: Callable[[TextPiece], Awaitable[None]] = self._mark_here
        self._marked_at = -math.inf
        self._chars = self._given = 0
        self.on_drained: Callable[[], None] = _no_op
        self._ready: deque[Segment] = deque()
        self._text: list[str] = []
        self._joined = ""
        self._ended = False
        self.failure: str | None = None
        self._arrived_at = anyio.current_time()
        self._arrival = anyio.Event()

    def push(self, piece: TextPiece) -> None:
        """Add the next piece. Pieces after the end are ignored."""
        if self._ended:
            return
        self._chars += len(piece.text)
        if self._chars > self._most_chars:
            self.fail(f"{TEXT_TOO_LONG}: at most {self._most_chars} characters a turn are allowed")
            return
        if piece.text:
            self._text.append(piece.text)
            self._ready.extend(self._segmenter.push(piece.text))
        if piece.flush or piece.end or piece.timeout:
            self._ready.extend(self._segmenter.flush())
        elif piece.settle:
            self._ready.extend(self._segmenter.settle())
        if piece.timeout:
            self.failure = self.failure or TEXT_TIMEOUT
        self._ended = piece.end or piece.timeout
        if piece != SETTLE:
            self._arrived_at = anyio.current_time()
        self._marked_at = -math.inf
        self._wake()

    @property
    def is_full(self) -> bool:
        """Whether the source should hold text back until ``on_drained`` is called."""
        return bool(self._ready) and self._chars - self._given > BACKLOG_CHARS

    def fail(self, problem: str) -> None:
        """End the text with ``problem``, unless it failed before."""
        self.failure = self.failure or problem
        self._wake()

    def text_of(self, segment: Segment) -> str:
        """The original text of a segment, before normalisation."""
        if self._text:
            self._joined += "".join(self._text)
            self._text.clear()
        return self._joined[segment.start : segment.end].strip()

    async def segments(self, first: int = 0) -> AsyncGenerator[Segment]:
        """Yield segments from number ``first`` on, as they become ready.

        Ends early if the text fails or stops arriving; ``failure`` then says why. Calls ``mark``,
        and raises what that raises.
        """
        while True:
            while self._ready:
                was_full = self.is_full
                segment = self._ready.popleft()
                self._given = segment.end
                if was_full and not self.is_full:
                    self._arrived_at = anyio.current_time()
                    self.on_drained()
                if segment.index >= first:
                    yield segment
            if self._ended or self.failure is not None:
                return
            mark, due = self._next_mark()
            with anyio.move_on_after(due - anyio.current_time()) as waiting:
                await self._arrival.wait()
            if waiting.cancelled_caught:
                self._marked_at = anyio.current_time()
                await self.mark(mark)

    def _next_mark(self) -> tuple[TextPiece, float]:
        """The mark to make if no text comes, and the time at which to make it."""
        mark, after_s = TIMEOUT, self._timeout_s
        if 0 < self._settle_s < self._timeout_s and self._segmenter.reads_complete:
            mark, after_s = SETTLE, self._settle_s
        return mark, max(self._arrived_at + after_s, self._marked_at + MARK_AGAIN_S)

    async def _mark_here(self, mark: TextPiece) -> None:
        self.push(mark)

    def _wake(self) -> None:
        self._arrival.set()
        self._arrival = anyio.Event()


def _no_op() -> None:
    """Do nothing: no source holds text back."""
