"""Read streamed text from ``tts:text:{<S>}:<request>`` into a turn's feed.

Decisions that depend on time (``TextFeed.mark``) are written into the stream and take effect when
they are read there. So they take effect at the same place of the text after a take-over.
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
"""How many entries are read at once."""

PAGE_GAP_S = 0.02
"""The time between two full pages: a stream of many tiny pieces must not delay other turns."""

Mark = Callable[[str, str, TextPiece], Awaitable[int]]
"""Adds a piece to the stream, given the last entry read, the new entry's id, and the piece.

Returns 1 when it was added, 0 when there is more to read or the lease is another's, -1 when it
cannot be added; see ``mark.lua``.
"""


class TextLog:
    """What was read of a turn's text stream, kept as long as this worker has the request.

    When the server forgets the turn, it may have forgotten the text too: the turn is spoken again
    from this log.
    """

    def __init__(self) -> None:
        self.last = b"-"
        """The last entry that was read."""
        self.pieces: list[TextPiece] = []

    def note(self, entry: bytes, piece: TextPiece) -> None:
        """Add the next piece, unless it says nothing new: a second flush in a row, for instance."""
        self.last = entry
        before = self.pieces[-1] if self.pieces else TextPiece(flush=True)
        flushes = piece.flush and not before.flush
        settles = piece.settle and not (before.flush or before.settle)
        if piece.text or piece.end or piece.timeout or flushes or settles:
            self.pieces.append(piece)


class _Reader:
    """Reads on in the stream each time it changes."""

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
                continue  # read twice: two reads were under way
            try:
                self._take_piece(entry, TextPiece.decode(paired(flat)))
            except FieldError as error:
                self._feed.fail(f"text stream: {error}")
                return
        if len(entries) == PAGE:
            asyncio.get_running_loop().call_later(PAGE_GAP_S, self.read_on)

    async def mark(self, piece: TextPiece) -> None:
        """Add a decision behind the last entry read. Has no effect if there is more to read.

        Where the server has forgotten the stream, the decision takes effect here alone.
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
        """Read on. Has no effect after the block of ``stream_text``."""
        if self.subscription is not None:
            self._watch.refresh(self.subscription)


@asynccontextmanager
async def stream_text(
    watch: KeyWatch, key: str, feed: TextFeed, log: TextLog, mark: Mark
) -> AsyncGenerator[None]:
    """Fill the feed from the log and then from the stream, for the time of the block.

    Args:
        watch: Tells when the stream changes.
        key: The stream.
        feed: Takes the pieces; its decisions go into the stream.
        log: What was read before; grows by what is read.
        mark: Adds the feed's decisions to the stream.
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
