"""One listener's place in one session's audio stream, between the reader and who waits."""

from collections import deque
from collections.abc import Callable
from typing import Final

import anyio

from voicefleet.producer.errors import StreamGap
from voicefleet.producer.reading.continuity import OLDEST, Continuity
from voicefleet.schemas import AudioEntry, EntryId

HIGH_WATER: Final = 256
"""Entries kept for a listener that does not come; then they stay in Redis until it does."""


class Subscription:
    """A cursor into the stream ``key``, and the entries that were read and not yet taken.

    Entries that ``wanted`` turns down are passed over. While a listener that is ``searching`` has
    wanted none, entries may be missing: what it looks for may be long behind, where the fleet
    trims the stream under its hands. The reader calls ``offer`` and ``fail``,
    the listener ``take`` and ``wait``. A listener that lags parks its subscription: the reader
    leaves it out until the backlog is drained, so memory stays bounded.
    """

    __slots__ = (
        *("_backlog", "_closed", "_continuity", "_failure", "_ready", "_searching", "_wanted"),
        "key",
    )

    def __init__(
        self,
        key: str,
        continuity: Continuity,
        wanted: Callable[[AudioEntry], bool],
        *,
        searching: bool = False,
    ) -> None:
        self.key = key
        self._continuity = continuity
        self._wanted = wanted
        self._searching = searching
        self._backlog: deque[AudioEntry] = deque()
        self._failure: Exception | None = None
        self._ready = anyio.Event()
        self._closed = False

    @property
    def cursor(self) -> EntryId:
        """The last entry that was read for this listener."""
        return self._continuity.last

    @property
    def closed(self) -> bool:
        """Whether nothing more will be read for this listener."""
        return self._closed

    @property
    def parked(self) -> bool:
        """Whether the reader leaves it out for now."""
        return self._closed or len(self._backlog) >= HIGH_WATER

    def offer(self, entry: AudioEntry) -> None:
        """Take the stream's next entry, if it is ahead of the cursor."""
        if self.parked or entry.id <= self.cursor:
            return
        try:
            if self._searching:
                self._continuity.forget()
            self._continuity.advance(entry)
            wanted = self._wanted(entry)
        except StreamGap as gap:
            self.fail(gap)
            return
        if wanted:
            self._searching = False
            self._backlog.append(entry)
            self._ready.set()

    def fail(self, failure: Exception) -> None:
        """End it: ``wait`` raises ``failure`` after the backlog."""
        if not self._closed:
            self._failure = failure
            self.close()

    def rewind(self) -> None:
        """The stream was lost and numbers its turns anew: read it from its beginning."""
        if self.cursor != OLDEST:
            self._continuity.forget()

    def close(self) -> None:
        """Read nothing more; what was read may still be taken."""
        self._closed = True
        self._ready.set()

    def take(self) -> AudioEntry | None:
        """The next entry that is here already."""
        return self._backlog.popleft() if self._backlog else None

    async def wait(self) -> None:
        """Until ``take`` has something.

        Raises:
            Exception: What ``fail`` was given, when nothing is left to take.
            anyio.ClosedResourceError: The subscription was closed.
        """
        while not self._backlog:
            if self._failure is not None:
                raise self._failure
            if self._closed:
                raise anyio.ClosedResourceError
            self._ready = anyio.Event()
            await self._ready.wait()
