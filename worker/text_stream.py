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


class _Reader:
    """Reads the stream from where it left off, each time it changes."""

    def __init__(self, watch: KeyWatch, key: str, feed: TextFeed) -> None:
        self._watch = watch
        self._key = key
        self._feed = feed
        self._last = b"-"
        self.subscription: Subscription | None = None

    def read(self) -> Command:
        start = self._last if self._last == b"-" else b"(" + self._last
        return ("XRANGE", self._key, start, "+", "COUNT", 0 if self._feed.is_full else PAGE)

    def take(self, reply: Reply) -> None:
        if isinstance(reply, ReplyError):
            self._feed.fail(f"text stream: {reply}")
            return
        entries = cast(list[tuple[bytes, list[bytes]]], reply or [])
        for entry, flat in entries:
            if self._last != b"-" and _order(entry) <= _order(self._last):
                continue  # two reads crossed
            self._last = entry
            try:
                self._feed.push(TextPiece.decode(paired(flat)))
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
async def stream_text(watch: KeyWatch, key: str, feed: TextFeed) -> AsyncGenerator[None]:
    """Feed what is in the stream, and what is added to it, for the time of the block."""
    reader = _Reader(watch, key, feed)
    feed.emptier = reader.read_on
    async with watch.subscribe(key, reader.read, reader.take) as reader.subscription:
        yield


def _order(entry: bytes) -> tuple[int, int]:
    ms, _, seq = entry.partition(b"-")
    return int(ms), int(seq)
