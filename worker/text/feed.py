"""A turn's text as it arrives, cut into segments."""

from collections import deque
from collections.abc import AsyncGenerator

import anyio

from schemas.request import TextPiece
from worker.engines.protocol import Segment, SegmentLimits
from worker.text.segment import Segmenter

TEXT_TIMEOUT = "text_timeout"
"""Streamed text stopped arriving before its end."""


class TextFeed:
    """Takes text in pieces and gives it out in segments.

    The segments depend on the text, the flushes and the limits alone, not on when they arrive:
    whoever takes the turn over cuts the same ones.
    """

    def __init__(self, limits: SegmentLimits, timeout_s: float) -> None:
        self._segmenter = Segmenter(limits)
        self._timeout_s = timeout_s
        self._ready: deque[Segment] = deque()
        self._text: list[str] = []
        self._joined = ""
        self._ended = False
        self.failure: str | None = None
        self._arrived_at = anyio.current_time()
        self._arrival = anyio.Event()

    def push(self, piece: TextPiece) -> None:
        """Take the next piece. What comes after the end is ignored."""
        if self._ended:
            return
        if piece.text:
            self._text.append(piece.text)
            self._ready.extend(self._segmenter.push(piece.text))
        if piece.flush or piece.end:
            self._ready.extend(self._segmenter.flush())
        self._ended = piece.end
        self._arrived_at = anyio.current_time()
        self._wake()

    def fail(self, problem: str) -> None:
        """The text cannot be read any further."""
        self.failure = problem
        self._wake()

    def text_of(self, segment: Segment) -> str:
        """The part of the whole text that a segment speaks, as it was written."""
        if self._text:
            self._joined += "".join(self._text)
            self._text.clear()
        return self._joined[segment.start : segment.end].strip()

    async def segments(self, first: int = 0) -> AsyncGenerator[Segment]:
        """Segments from number ``first`` on, as they become ready.

        They end early when the text fails or stops arriving: ``failure`` then says why.
        """
        while True:
            while self._ready:
                segment = self._ready.popleft()
                if segment.index >= first:
                    yield segment
            if self._ended or self.failure is not None:
                return
            deadline = self._arrived_at + self._timeout_s
            with anyio.move_on_after(deadline - anyio.current_time()) as waiting:
                await self._arrival.wait()
            if waiting.cancelled_caught:
                self.failure = TEXT_TIMEOUT

    def _wake(self) -> None:
        self._arrival.set()
        self._arrival = anyio.Event()
