"""One request's place among those that wait for its session."""

import time

import anyio
import structlog

from voicefleet.worker.control.key_watch import RECONCILE_S
from voicefleet.worker.store.queues import Delivery, QueueStore
from voicefleet.worker.store.sessions import Lease, SessionStore

log = structlog.stdlib.get_logger(__name__)

SILENCE_S = 5.0
"""A turn or place that shows no sign of life for so long is checked.

Owners renew the session's record each second, and a request whose turn has come begins at once.
"""


class WaitingPlace:
    """The place of one waiting request, as far as the job's readings of the lease show it.

    ``was_seen`` says that a reading showed the place.

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
        """Note a reading without the place; returns whether the place is gone.

        True for a place that was seen, or on the second such reading: the first may predate it.
        """
        self._misses += 1
        return self.was_seen or self._misses > 1

    async def clear_the_way(self, lease: Lease) -> None:
        """Remove a turn and places ahead whose requests are gone: nobody would ever end them.

        A worker that is alive and finds its place removed takes it again.
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
            log.warning("lost_turn_abandoned", entry=entry, owner=owner)
            await self._sessions.abandon(self._session, entry, model, owner)
        await anyio.sleep(RECONCILE_S)  # living owners come back first

    def _is_stuck_behind(self, *ahead: object) -> bool:
        """Whether what is ahead has not changed for ``SILENCE_S``, while the server answered."""
        now = time.monotonic()
        was_away = now - self._read_at > 2 * RECONCILE_S
        self._read_at = now
        if was_away or ahead != self._ahead:
            self._ahead, self._ahead_since = ahead, now
        return now - self._ahead_since > SILENCE_S
