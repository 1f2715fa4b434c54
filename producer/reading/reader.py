"""Reads the audio streams of all sessions that are listened to.

Standalone and Sentinel: one reader, one connection, one blocking XREAD of all sessions. Cluster:
keys of different slots cannot share an XREAD, not even on one server. So each session has a reader
with a connection of its own, for as long as somebody listens to it.
"""

import logging
import random
import time
from typing import Final, cast

import anyio
from anyio.abc import TaskGroup

from voicefleet.producer.errors import (
    ForeignEntry,
    ServerRefused,
    ServerUnreachable,
    VoiceFleetError,
    translated,
)
from voicefleet.producer.reading.subscription import Subscription
from voicefleet.producer.redis_client import RedisClient
from voicefleet.schemas import AudioEntry, EntryId, FieldError
from voicefleet.schemas.audio import decode
from voicefleet.schemas.fields import paired
from voicefleet.wire.link import Argument, Link, LinkClosedError, Reply, ReplyError

logger = logging.getLogger("voicefleet.producer")

BLOCK_MS: Final = 5_000
COUNT: Final = 64
"""Entries of one session in one XREAD: 1.3 s of audio, so that no session crowds out others."""

SILENCE_S: Final = 10.0
"""A stream without an entry for so long is checked: it may have been lost and begun anew."""

_OF_ONE_KEY: Final = ("WRONGTYPE", "NOPERM")
"""Errors that concern one key; others pass when the server has recovered or moved."""


class Readers:
    """The readers of one client. Their tasks live in the client's task group."""

    def __init__(self, redis: RedisClient, tasks: TaskGroup, *, give_up_after: float) -> None:
        self._redis = redis
        self._tasks = tasks
        self._give_up_after = give_up_after
        self._readers: dict[str, Reader] = {}

    async def subscribe(self, subscription: Subscription) -> None:
        """Read for ``subscription`` from now on, until it is closed."""
        cluster = self._redis.endpoint.topology == "cluster"
        group = subscription.key if cluster else ""
        reader = self._readers.get(group)
        if reader is None:
            reader = Reader(self._redis, lingers=not cluster, give_up_after=self._give_up_after)
            self._readers[group] = reader
            self._tasks.start_soon(self._run, group, reader)
        await reader.add(subscription)

    async def next(self, subscription: Subscription) -> AudioEntry:
        """Wait for the next entry of ``subscription``. Cancelling loses no entry.

        Raises:
            VoiceFleetError: Reading failed.
            anyio.ClosedResourceError: The subscription is closed.
        """
        while (entry := subscription.take()) is None:
            if not subscription.closed:
                await self.subscribe(subscription)  # the reader may have left it out, parked
            await subscription.wait()
        return entry

    async def _run(self, group: str, reader: "Reader") -> None:
        try:
            await reader.run()
        finally:
            del self._readers[group]


class Reader:
    """One connection that waits for the next entries of a changing set of streams.

    Args:
        redis: Where the streams are.
        lingers: Without a stream to read, keep the connection and wait; otherwise end.
        give_up_after: After so many seconds without a connection, listeners get
            ``ServerUnreachable``.
    """

    def __init__(self, redis: RedisClient, *, lingers: bool, give_up_after: float) -> None:
        self._redis = redis
        self._lingers = lingers
        self._give_up_after = give_up_after
        self._subscriptions: dict[str, set[Subscription]] = {}
        self._heard: dict[str, float] = {}
        self._added = anyio.Event()
        self._link: Link | None = None
        self._client_id = 0
        self._reading: dict[str, EntryId] | None = None
        self._round = 0

    async def add(self, subscription: Subscription) -> None:
        """Read for ``subscription`` at once: a blocked XREAD that leaves it out is unblocked."""
        self._subscriptions.setdefault(subscription.key, set()).add(subscription)
        self._heard.setdefault(subscription.key, time.monotonic())
        self._added.set()
        this_round = self._round
        for _ in range(3):  # an XREAD that is still on its way is not blocked yet: ask again
            if self._round != this_round or self._covers(subscription) or await self._unblock():
                return
        if self._link is not None:
            self._link.close()  # the reader connects again and reads every key

    def _covers(self, subscription: Subscription) -> bool:
        if self._reading is None:  # between two reads: the next one covers it
            return True
        since = self._reading.get(subscription.key)
        return since is not None and since <= subscription.last

    async def _unblock(self) -> bool:
        if self._redis.endpoint.topology == "cluster":
            return False
        try:
            return await self._redis.call("CLIENT UNBLOCK", self._client_id) == 1
        except VoiceFleetError:  # the user may lack the right: it is in @dangerous
            return False

    async def run(self) -> None:
        """Read, across lost connections, until cancelled or, unless it lingers, nobody listens."""
        lost_since: float | None = None
        attempt = 0
        try:
            while True:
                cursors = self._cursors()
                if not cursors:
                    if not self._lingers:
                        return
                    self._added = anyio.Event()
                    await self._added.wait()
                    continue
                try:
                    with translated(self._redis.endpoint):
                        await self._read(cursors)
                    lost_since, attempt = None, 0
                except ServerRefused as refusal:
                    self._fail(cursors, refusal)
                except ServerUnreachable as lost:
                    self._drop_link()
                    lost_since = lost_since or time.monotonic()
                    if time.monotonic() - lost_since > self._give_up_after:
                        self._fail(cursors, lost)
                        lost_since, attempt = None, 0
                        continue
                    logger.debug("reader: %s; connecting again", lost)
                    await self._before_attempt(attempt)
                    attempt += 1
        except anyio.get_cancelled_exc_class():  # the client is closed: let no listener wait on
            for listeners in self._subscriptions.values():
                for one in listeners:
                    one.close()
            raise
        finally:
            self._drop_link()

    async def _before_attempt(self, attempt: int) -> None:
        """Connect again at once the first time; then find the server's address and back off."""
        if attempt == 0:
            return
        try:
            await self._redis.topology.refresh()
        except LinkClosedError as error:
            logger.debug("reader: %s", error)
        await anyio.sleep(min(0.02 * 2**attempt, 1.0) * random.uniform(0.5, 1.0))  # noqa: S311

    def _cursors(self) -> dict[str, EntryId]:
        """The id after which to read each stream: that of its listener furthest behind."""
        cursors: dict[str, EntryId] = {}
        for key, listeners in list(self._subscriptions.items()):
            listeners -= {one for one in listeners if one.closed}
            if not listeners:
                del self._subscriptions[key], self._heard[key]
                continue
            if waiting := [one.last for one in listeners if not one.parked]:
                cursors[key] = min(waiting)
        return cursors

    async def _read(self, cursors: dict[str, EntryId]) -> None:
        link = self._link or await self._connect(next(iter(cursors)))
        ids = [str(cursor) for cursor in cursors.values()]
        command = ("XREAD", "COUNT", COUNT, "BLOCK", BLOCK_MS, "STREAMS", *cursors, *ids)
        self._reading = cursors
        try:
            timeout = BLOCK_MS / 1000 + self._redis.endpoint.timeout_s
            reply = await link.call(*command, timeout_s=timeout)
        except ReplyError as error:
            await self._fail_key(link, cursors, error)
            return
        finally:
            self._reading = None
            self._round += 1
        now = time.monotonic()
        for key, entries in cast(dict[bytes, list[list[Reply]]], reply or {}).items():
            name = key.decode()
            self._heard[name] = now
            self._deliver(name, cursors[name], entries)
        await self._check_silent(link, cursors, now)

    async def _connect(self, key: str) -> Link:
        topology = self._redis.topology
        link = await topology.open_link(topology.owner(key))
        try:
            self._client_id = cast(int, await link.call("CLIENT", "ID"))
        except ReplyError:  # the user has no right to CLIENT ID
            self._client_id = 0
        except BaseException:
            link.close()
            raise
        self._link = link
        return link

    def _drop_link(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _deliver(self, key: str, since: EntryId, entries: list[list[Reply]]) -> None:
        # A listener further behind than this read's start joined, or was unparked, during it.
        listeners = [one for one in self._subscriptions.get(key, set()) if one.last >= since]
        for raw_id, flat in entries:
            try:
                parts = cast(list[bytes], flat)
                fields = paired(parts)
                entry = decode(cast(bytes, raw_id), fields)
            except FieldError as error:
                self._fail([key], ForeignEntry(f"{key} {cast(bytes, raw_id)!r}: {error}"))
                return
            for one in listeners:
                one.offer(entry)

    async def _check_silent(self, link: Link, cursors: dict[str, EntryId], now: float) -> None:
        """Rewind listeners of a stream whose last id is below theirs: it was begun anew."""
        silent = [k for k in cursors if now - self._heard.get(k, now) > SILENCE_S]
        if not silent:
            return
        commands: list[tuple[Argument, ...]] = [
            ("XREVRANGE", key, "+", "-", "COUNT", 1) for key in silent
        ]
        for key, reply in zip(silent, await link.batch(commands), strict=True):
            self._heard[key] = now
            if not isinstance(reply, list) or not reply:
                continue
            ((last, _),) = cast(list[tuple[bytes, Reply]], reply)
            for one in self._subscriptions.get(key, set()):
                if EntryId.parse(last) < one.last:
                    one.rewind()

    async def _fail_key(self, link: Link, cursors: dict[str, EntryId], error: ReplyError) -> None:
        """Find the key that failed an XREAD of all keys, and fail its listeners alone.

        Raises:
            LinkClosedError: No key is at fault; a later attempt may succeed.
        """
        if not str(error).startswith(_OF_ONE_KEY):
            raise LinkClosedError(str(error))
        commands: list[tuple[Argument, ...]] = [
            ("XREAD", "COUNT", 1, "STREAMS", key, str(cursor)) for key, cursor in cursors.items()
        ]
        for key, reply in zip(cursors, await link.batch(commands), strict=True):
            if isinstance(reply, ReplyError):
                self._fail([key], ServerRefused(f"{key}: {reply}"))

    def _fail(self, keys: "dict[str, EntryId] | list[str]", failure: VoiceFleetError) -> None:
        for key in keys:
            for one in self._subscriptions.get(key, set()):
                one.fail(failure)
