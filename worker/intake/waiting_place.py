"""A request's place among those who wait for its session."""

import time

import anyio
import structlog

from voicefleet.worker.control.key_watch import RECONCILE_S
from voicefleet.worker.store.queues import Delivery, QueueStore
from voicefleet.worker.store.sessions import Lease, SessionStore

log = structlog.stdlib.get_logger(__name__)

SILENCE_S = 5.0
"""An owner writes each second that it has a turn, and one who is next begins at once."""


class PlaceInLine:
    """The place of one waiting request; its holder says what it reads of the lease.

    Args:
        queues: The models' queues.
        sessions: The sessions' keys.
        delivery: The request that waits.
        session: Its session.
    """

    def __init__(
        self, queues: QueueStore, sessions: SessionStore, delivery: Delivery, session: str
    ) -> None:
        self._queues = queues
        self._sessions = sessions
        self._delivery = delivery
        self._session = session
        self.was_seen = False
        self._misses = 0
        self._ahead: tuple[object, ...] = ()
        self._ahead_since = self._read_at = 0.0

    def is_lost(self) -> bool:
        """Whether it is gone, after a reading without it: the first may be older than itself."""
        self._misses += 1
        return self.was_seen or self._misses > 1

    async def clear_the_way(self, lease: Lease) -> None:
        """Do not wait for what nobody can end: a turn, or places, whose requests are gone.

        Nothing is lost of a place that is taken away from somebody who lives: he takes it again.
        """
        ahead = lease.before(self._delivery.entry, self._delivery.model)
        found = [(waiter.model, waiter.entry, "") for waiter in ahead]
        if lease.active:
            found.insert(0, (lease.model, lease.entry, lease.owner))
            sign: tuple[object, ...] = (
                lease.epoch,
                await self._sessions.updated_ms(self._session),
            )
        else:
            sign = tuple(ahead[:1])
        if not (found and self._is_stuck_behind(*sign)):
            return
        gone = [one for one in found if not await self._queues.is_queued(*one[:2])]
        if found[0] not in gone:
            return
        for model, entry, owner in gone:
            log.warning("turn_lost", entry=entry, owner=owner)
            await self._sessions.abandon(self._session, entry, model, owner)
        await anyio.sleep(RECONCILE_S)  # those who live come back before one is next

    def _is_stuck_behind(self, *ahead: object) -> bool:
        """Whether what is ahead shows no sign of life, though it could: the server answers."""
        now = time.monotonic()
        was_away = now - self._read_at > 2 * RECONCILE_S
        self._read_at = now
        if was_away or ahead != self._ahead:
            self._ahead, self._ahead_since = ahead, now
        return now - self._ahead_since > SILENCE_S
