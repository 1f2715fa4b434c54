"""What the reader has read of one session's audio stream for one listener."""

from collections import deque
from collections.abc import Callable
from typing import Final

import anyio

from voicefleet.producer.errors import StreamGap
from voicefleet.producer.reading.cursor import Cursor
from voicefleet.schemas import AudioEntry, EntryId

HIGH_WATER: Final = 256
"""So many entries are kept for a listener that does not take them; the rest stays in Redis."""


class Subscription:
    """A cursor into the stream ``key``, and the entries that were read and not yet taken.

    The reader calls ``offer`` and ``fail``, the listener ``take`` and ``wait``. A subscription
    whose listener lags is parked: the reader leaves it out until its backlog is taken, so memory
    stays bounded.

    Args:
        key: The audio stream.
        cursor: Where reading begins.
        wanted: Entries for which it returns ``False`` are passed over.
        searching: Until the first wanted entry, missing entries are no gap: the search begins
            with the oldest entries, which the fleet trims meanwhile.
    """

    __slots__ = (
        *("_backlog", "_closed", "_cursor", "_failure", "_ready", "_searching", "_wanted"),
        "key",
    )

    def __init__(
        self,
        key: str,
        cursor: Cursor,
        wanted: Callable[[AudioEntry], bool],
        *,
        searching: bool = False,
    ) -> None:
        self.key = key
        self._cursor = cursor
        self._wanted = wanted
        self._searching = searching
        self._backlog: deque[AudioEntry] = deque()
        self._failure: Exception | None = None
        self._ready = anyio.Event()
        self._closed = False

    @property
    def last(self) -> EntryId:
        """The id of the last entry that was read for this listener."""
        return self._cursor.last

    @property
    def closed(self) -> bool:
        """Whether nothing more will be read for this listener."""
        return self._closed

    @property
    def parked(self) -> bool:
        """Whether the reader leaves it out: its listener lags, or it is closed."""
        return self._closed or len(self._backlog) >= HIGH_WATER

    def offer(self, entry: AudioEntry) -> None:
        """Take the stream's next entry, unless it was read before."""
        if self.parked or entry.id <= self.last:
            return
        try:
            if self._searching:
                self._cursor.reset()
            self._cursor.advance(entry)
            wanted = self._wanted(entry)
        except StreamGap as gap:
            self.fail(gap)
            return
        if wanted:
            self._searching = False
            self._backlog.append(entry)
            self._ready.set()

    def fail(self, failure: Exception) -> None:
        """Close it; ``wait`` raises ``failure`` when the backlog is taken."""
        if not self._closed:
            self._failure = failure
            self.close()

    def rewind(self) -> None:
        """Read from the beginning: the stream was lost and numbers its turns anew."""
        self._cursor.reset()

    def close(self) -> None:
        """Read nothing more; what was read may still be taken."""
        self._closed = True
        self._ready.set()

    def take(self) -> AudioEntry | None:
        """The next entry that was read, if there is one."""
        return self._backlog.popleft() if self._backlog else None

    async def wait(self) -> None:
        """Wait until ``take`` returns an entry.

        Raises:
            Exception: The failure that ``fail`` was given, when nothing is left to take.
            anyio.ClosedResourceError: The subscription is closed.
        """
        while not self._backlog:
            if self._failure is not None:
                raise self._failure
            if self._closed:
                raise anyio.ClosedResourceError
            self._ready = anyio.Event()
            await self._ready.wait()
