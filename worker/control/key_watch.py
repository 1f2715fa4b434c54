"""Watch keys: read a key, and read it again the moment it changes.

This uses Redis' client-side caching. A read on a connection with ``CLIENT TRACKING ON`` makes the
server push an invalidation when the key changes, even if the key did not exist. The push handler
sends the read again at once, on the same connection. Measured: p50 0.3 ms from SET to callback,
and no pushes for other keys.

Tracking does not survive a reconnect, and a push can be lost. So all reads are sent again on every
new connection and once a second; every 20 ms where the server refuses tracking.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from voicefleet.wire.connect import Address, Topology
from voicefleet.wire.link import Command, Link, LinkClosedError, Reply, ReplyError
from voicefleet.wire.router import is_passing

log = structlog.stdlib.get_logger(__name__)

RECONCILE_S = 1.0
"""How often all keys are read again."""

RECONCILE_AT_ONCE = 64
"""How many reads go into one write. The replies to thousands at once would delay frames."""

POLL_S = 0.02
"""How often all keys are read again where the server refuses tracking."""

RETRY_S = 0.1
"""The time between losing a connection and opening the next."""

LEAST_GAP_S = 0.005
"""The least time between two reads of a key that is written continually."""


class Subscription:
    """One watched read. The first reply sets ``seen``.

    Args:
        key: The key that is watched.
        read: Makes the command that reads it, each time anew.
        on_reply: Gets each reply, changed or not, and refusals (``ReplyError``) that are no
            passing trouble of the server.
    """

    def __init__(
        self, key: str, read: Callable[[], Command], on_reply: Callable[[Reply], None]
    ) -> None:
        self.key = key
        self.read = read
        self.on_reply = on_reply
        self.seen = anyio.Event()
        self.read_at = 0.0

    def deliver(self, reply: Reply) -> None:
        """Pass a reply on."""
        self.on_reply(reply)
        self.seen.set()


class _TrackedConnection:
    """The connection to one server, and the subscriptions that are read through it."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.subscriptions: dict[bytes, set[Subscription]] = {}
        self.link: Link | None = None
        self.tracked = False
        self.is_up = True
        self.lost = anyio.Event()
        self.unanswered = 0

    def read(self, subscriptions: list[Subscription]) -> None:
        """Send the reads in one write."""
        if self.link is None or not subscriptions:
            return
        now = time.monotonic()
        for subscription in subscriptions:
            subscription.read_at = now
        self.unanswered += 1
        self.link.submit([s.read() for s in subscriptions], partial(self._replied, subscriptions))

    @property
    def all(self) -> list[Subscription]:
        return [s for group in self.subscriptions.values() for s in group]

    def has(self, subscription: Subscription) -> bool:
        return subscription in self.subscriptions.get(subscription.key.encode(), ())

    def read_all(self) -> None:
        self.read(self.all)

    def pages(self) -> list[list[Subscription]]:
        """All subscriptions in pages of ``RECONCILE_AT_ONCE``; at least one page."""
        found, most = self.all, RECONCILE_AT_ONCE
        return [found[at : at + most] for at in range(0, max(1, len(found)), most)]

    def _replied(
        self, subscriptions: list[Subscription], replies: list[Reply] | LinkClosedError
    ) -> None:
        self.unanswered -= 1
        if isinstance(replies, LinkClosedError):
            return  # the next connection reads everything again
        for subscription, reply in zip(subscriptions, replies, strict=True):
            if isinstance(reply, ReplyError) and is_passing(reply):
                self.lost.set()
            elif self.has(subscription):
                try:
                    subscription.deliver(reply)
                except Exception:  # a faulty reader must not cost the others the connection
                    log.exception("watched_read_failed", key=subscription.key)

    def pushed(self, push: list[Reply]) -> None:
        """A server push: ``[b"invalidate", [keys] or None]``."""
        if push[0] != b"invalidate":
            return
        if push[1] is None:  # FLUSHALL, or the server's tracking table overflowed
            self.read_all()
            return
        rested = time.monotonic() - LEAST_GAP_S
        stale: list[Subscription] = []
        for key in cast(list[bytes], push[1]):
            group = self.subscriptions.get(key, ())
            if all(subscription.read_at <= rested for subscription in group):
                stale.extend(group)
            else:  # until it is read again, the server pushes nothing for this key
                asyncio.get_running_loop().call_later(LEAST_GAP_S, self._read_key, key)
        self.read(stale)

    def _read_key(self, key: bytes) -> None:
        self.read(list(self.subscriptions.get(key, ())))


class KeyWatch:
    """All watched keys of a worker, with one connection to each server that owns some."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._connections: dict[Address, _TrackedConnection] = {}
        self._tasks: TaskGroup | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Own the connections until cancelled."""
        async with anyio.create_task_group() as self._tasks:
            task_status.started()
            await anyio.sleep_forever()

    @property
    def tracking(self) -> bool:
        """Whether every server in use pushes changes; otherwise some keys are polled."""
        return all(connection.tracked for connection in self._connections.values())

    @asynccontextmanager
    async def subscribe(
        self, key: str, read: Callable[[], Command], on_reply: Callable[[Reply], None]
    ) -> AsyncGenerator[Subscription]:
        """Watch a key for the time of the block.

        Nothing is known of the key before ``subscription.seen`` is set.
        """
        subscription = Subscription(key, read, on_reply)
        self._place(subscription)
        try:
            yield subscription
        finally:
            for connection in self._connections.values():
                group = connection.subscriptions.get(key.encode())
                if group is not None:
                    group.discard(subscription)
                    if not group:
                        del connection.subscriptions[key.encode()]

    def refresh(self, subscription: Subscription) -> None:
        """Read now, without waiting for a change."""
        for connection in self._connections.values():
            if connection.has(subscription):
                connection.read([subscription])

    def _place(self, subscription: Subscription) -> None:
        if self._tasks is None:
            raise RuntimeError("the watch is not running")
        address = self._topology.owner(subscription.key)
        connection = self._connections.get(address)
        if connection is None:
            connection = self._connections[address] = _TrackedConnection(address)
            self._tasks.start_soon(self._guard, connection)
        connection.subscriptions.setdefault(subscription.key.encode(), set()).add(subscription)
        connection.read([subscription])

    async def _guard(self, connection: _TrackedConnection) -> None:
        """Keep one server's connection up and its keys read; move keys that another server owns."""
        structlog.contextvars.clear_contextvars()  # not those of the turn that came first
        while True:
            try:
                await self._connected(connection)
            except (LinkClosedError, ReplyError) as error:
                if connection.is_up:
                    log.warning("watch_lost", server=str(connection.address), error=str(error))
                connection.is_up = False
            connection.link = None
            await anyio.sleep(RETRY_S)
            try:
                await self._topology.refresh()
            except LinkClosedError:
                continue
            moved = self._moved(connection)
            for subscription in moved:
                connection.subscriptions.pop(subscription.key.encode(), None)
                self._place(subscription)
            if not connection.subscriptions and moved:
                del self._connections[connection.address]
                return

    def _moved(self, connection: _TrackedConnection) -> list[Subscription]:
        """The subscriptions whose keys another server owns now."""
        owner, address = self._topology.owner, connection.address
        found = [s for group in connection.subscriptions.values() for s in group]
        return [subscription for subscription in found if owner(subscription.key) != address]

    async def _connected(self, connection: _TrackedConnection) -> None:
        connection.lost = anyio.Event()
        lost = connection.lost
        link = await self._topology.open_link(
            connection.address, on_push=connection.pushed, on_lost=lost.set
        )
        try:
            try:
                await link.call("CLIENT", "TRACKING", "ON")
                connection.tracked = True
            except ReplyError as error:
                connection.tracked = False
                log.warning("tracking_refused", error=str(error), fallback_ms=int(POLL_S * 1000))
            connection.link = link
            connection.is_up = True
            # A read without a reply has waited for one round already.
            patience_s = max(self._topology.endpoint.timeout_s - RECONCILE_S, RECONCILE_S)
            connection.read_all()
            round_s = RECONCILE_S if connection.tracked else POLL_S
            pages: list[list[Subscription]] = [[]]
            while True:
                for page in pages:
                    connection.read([s for s in page if connection.has(s)])
                    with anyio.move_on_after(round_s / len(pages)):
                        await lost.wait()
                        raise LinkClosedError("the connection was lost, or its keys moved")
                pages = connection.pages()
                # A half-open connection answers nothing: a ping with a deadline finds it out. And a
                # primary that was replaced answers still, with old values: its keys have moved.
                if connection.unanswered or not connection.subscriptions:
                    await link.call("PING", timeout_s=patience_s)
                if self._moved(connection):
                    raise LinkClosedError("its keys moved")
        finally:
            connection.link = None
            link.close()
