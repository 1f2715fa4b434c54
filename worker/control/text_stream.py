"""Streamed text: from ``tts:text:{<S>}:<request>`` into a turn's feed.

What time decides (``TextFeed.mark``) is put into the stream and acts as what is read there, so that
it acts at the same place of the text for whoever takes the turn over.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast

from voicefleet.schemas.fields import FieldError, paired
from voicefleet.schemas.request import TextPiece
from voicefleet.wire.link import Command, Reply, ReplyError
from voicefleet.worker.control.key_watch import KeyWatch, Subscription
from voicefleet.worker.text.feed import TextFeed

PAGE = 256
PAGE_GAP_S = 0.02
"""Time between two full pages: a stream of many tiny pieces must not hold up other turns."""


Mark = Callable[[str, str, TextPiece], Awaitable[int]]
"""Adds a piece to the stream: last entry read, the new one's id, piece; see ``mark.lua``."""


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
        before = self.pieces[-1] if self.pieces else TextPiece(flush=True)
        flushes = piece.flush and not before.flush
        settles = piece.settle and not (before.flush or before.settle)
        if piece.text or piece.end or piece.timeout or flushes or settles:
            self.pieces.append(piece)


class _Reader:
    """Reads the stream from where it left off, each time it changes."""

    def __init__(self, watch: KeyWatch, key: str, feed: TextFeed, log: TextLog, mark: Mark) -> None:
        self._watch = watch
        self._key = key
        self._feed = feed
        self._log = log
        self._mark = mark
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
            if _order(entry) <= _order(self._log.last):
                continue  # two reads crossed
            try:
                self._take_piece(entry, TextPiece.decode(paired(flat)))
            except FieldError as error:
                self._feed.fail(f"text stream: {error}")
                return
        if len(entries) == PAGE:
            asyncio.get_running_loop().call_later(PAGE_GAP_S, self.read_on)

    async def mark(self, piece: TextPiece) -> None:
        """Put it behind what was read; without effect where there is more to read.

        Where the server has forgotten the text there is no place for it, and nobody to find it.
        """
        after = self._log.last
        ms, seq = _order(after)
        entry = f"{ms}-{seq + 1}"
        try:
            outcome = await self._mark(after.decode(), entry, piece)
        except ReplyError as error:
            self._feed.fail(f"text stream: {error}")
            return
        if outcome != 0 and self._log.last == after:
            self._take_piece(entry.encode() if outcome > 0 else after, piece)

    def _take_piece(self, entry: bytes, piece: TextPiece) -> None:
        self._log.note(entry, piece)
        self._feed.push(piece)

    def read_on(self) -> None:
        """There is more, and room for it. Without effect once nobody listens."""
        if self.subscription is not None:
            self._watch.refresh(self.subscription)


@asynccontextmanager
async def stream_text(
    watch: KeyWatch, key: str, feed: TextFeed, log: TextLog, mark: Mark
) -> AsyncGenerator[None]:
    """Feed what is in the log and the stream, and what is added to it, for the time of the block.

    The log grows by what is read. ``mark`` adds to the stream what the feed decides.
    """
    for piece in log.pieces:
        feed.push(piece)
    reader = _Reader(watch, key, feed, log, mark)
    feed.on_drained = reader.read_on
    feed.mark = reader.mark
    async with watch.subscribe(key, reader.read, reader.take) as reader.subscription:
        yield


def _order(entry: bytes) -> tuple[int, int]:
    if entry == b"-":
        return 0, 0  # before all others
    ms, _, seq = entry.partition(b"-")
    return int(ms), int(seq)
