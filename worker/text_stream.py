"""Streamed text: from ``tts:text:{<S>}:<request>`` into a turn's feed."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import cast

from schemas.fields import FieldError, paired
from schemas.request import TextPiece
from wire.link import Command, Reply, ReplyError
from worker.text.feed import TextFeed
from worker.watch import KeyWatch, Subscription

PAGE = 256
PAGE_GAP_S = 0.02
"""Time between two full pages: a stream of many tiny pieces must not hold up other turns."""


class TextLog:
    """What was read of a turn's text stream, for as long as this worker has the request.

    A turn that is taken up again because the server forgot some of it says what it would have said:
    the server may have forgotten the text, too.
    """

    def __init__(self) -> None:
        self.last = b"-"
        """The last entry that was read."""
        self.pieces: list[TextPiece] = []

    def note(self, entry: bytes, piece: TextPiece) -> None:
        """Add the next piece. A flush of nothing is none: there may be any number of them."""
        self.last = entry
        flushes = piece.flush and bool(self.pieces) and not self.pieces[-1].flush
        if piece.text or piece.end or flushes:
            self.pieces.append(piece)


class _Reader:
    """Reads the stream from where it left off, each time it changes."""

    def __init__(self, watch: KeyWatch, key: str, feed: TextFeed, log: TextLog) -> None:
        self._watch = watch
        self._key = key
        self._feed = feed
        self._log = log
        self.subscription: Subscription | None = None

    def read(self) -> Command:
        last = self._log.last
        start = last if last == b"-" else b"(" + last
        return ("XRANGE", self._key, start, "+", "COUNT", 0 if self._feed.is_full else PAGE)

    def take(self, reply: Reply) -> None:
        if isinstance(reply, ReplyError):
            self._feed.fail(f"text stream: {reply}")
            return
        if self._feed.failure is not None:
            return
        entries = cast(list[tuple[bytes, list[bytes]]], reply or [])
        for entry, flat in entries:
            last = self._log.last
            if last != b"-" and _order(entry) <= _order(last):
                continue  # two reads crossed
            try:
                piece = TextPiece.decode(paired(flat))
                self._log.note(entry, piece)
                self._feed.push(piece)
            except FieldError as error:
                self._feed.fail(f"text stream: {error}")
                return
        if len(entries) == PAGE:
            asyncio.get_running_loop().call_later(PAGE_GAP_S, self.read_on)

    def read_on(self) -> None:
        """There is more, and room for it. Without effect once nobody listens."""
        if self.subscription is not None:
            self._watch.refresh(self.subscription)


@asynccontextmanager
async def stream_text(
    watch: KeyWatch, key: str, feed: TextFeed, log: TextLog
) -> AsyncGenerator[None]:
    """Feed what is in the log and the stream, and what is added to it, for the time of the block.

    The log grows by what is read.
    """
    for piece in log.pieces:
        feed.push(piece)
    reader = _Reader(watch, key, feed, log)
    feed.emptier = reader.read_on
    async with watch.subscribe(key, reader.read, reader.take) as reader.subscription:
        yield


def _order(entry: bytes) -> tuple[int, int]:
    ms, _, seq = entry.partition(b"-")
    return int(ms), int(seq)
