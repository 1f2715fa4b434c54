"""All entries of a session's audio stream, from any place in it."""

import weakref
from types import TracebackType
from typing import Self

import anyio

from voicefleet.producer.reading.cursor import Cursor
from voicefleet.producer.reading.reader import Readers
from voicefleet.producer.reading.subscription import Subscription
from voicefleet.producer.redis_client import RedisClient
from voicefleet.schemas import AudioEntry, EntryId


def _everything(entry: AudioEntry) -> bool:
    return True


class Listener:
    """Iterates the entries of a session as they come, until it is closed::

        async with session.listen(after="$") as listener:
            async for entry in listener:
                match entry:
                    case Start():
                        player.open(entry.sample_rate)
                    case Frame():
                        player.play(entry.pcm)
                    case End():
                        print(entry.request, entry.reason)

    ``last`` is the id of the last entry that was yielded. A process that starts again goes on
    behind it, without a frame lost or repeated: ``session.listen(after=last)``.

    Raises on iteration:
        StreamGap: Entries were trimmed before they were read.
        ForeignEntry: The stream holds an entry that the protocol does not know.
        ServerUnreachable: There was no connection for the client's ``reconnect_for`` seconds.
        ServerRefused: The key has another type, or this user may not read it.
    """

    def __init__(
        self,
        redis: RedisClient,
        readers: Readers,
        key: str,
        place: Cursor | EntryId | str | None,
    ) -> None:
        self._redis = redis
        self._readers = readers
        self._key = key
        self._place = place
        self._opening = anyio.Lock()
        self._subscription: Subscription | None = None
        self._closed = False
        self.last: EntryId | None = None

    async def open(self) -> Self:
        """Begin to read; iterating does so too. Entries added from now on are not missed."""
        async with self._opening:
            if self._subscription is None and not self._closed:
                place = self._place
                if not isinstance(place, Cursor):
                    place = await Cursor.find(self._redis, self._key, place)
                subscription = Subscription(self._key, place, _everything)
                weakref.finalize(self, subscription.close)
                self._subscription = subscription
                await self._readers.subscribe(subscription)
        return self

    def close(self) -> None:
        """Stop reading. Iteration then ends."""
        self._closed = True
        if self._subscription is not None:
            self._subscription.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AudioEntry:
        if self._subscription is None:
            await self.open()
        if self._subscription is None or self._closed:
            raise StopAsyncIteration
        try:
            entry = await self._readers.next(self._subscription)
        except anyio.ClosedResourceError:
            raise StopAsyncIteration from None
        self.last = entry.id
        return entry

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
