"""What a session wants of one of its turns: its control key and its lease, read as a verdict."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from enum import Enum
from typing import cast

import anyio
import structlog

from schemas import control
from schemas.control import Level, StopThrough, Wish
from schemas.fields import FieldError
from schemas.keys import Keys
from wire.link import Reply, ReplyError
from worker.ledger import Delivery, Lease
from worker.watch import KeyWatch

log = structlog.stdlib.get_logger(__name__)


class Verdict(Enum):
    """What a turn has to do now."""

    SPEAK = "speak"
    PAUSE = "pause"
    STOP = "stop"
    INTERRUPT = "interrupt"
    LOST = "lost"


class SessionWatch:
    """One turn's view of its session.

    Both keys are levels: what they say now is what holds, whoever looks and whenever. ``changed``
    is called after every reply; it must return at once. ``lease_changed`` is set by the next
    reading of the lease, a change or a second's reconciliation, and is then another event.
    """

    def __init__(self, delivery: Delivery, session: str, request: str) -> None:
        self._delivery = delivery
        self._session = session
        self._request = request
        self.epoch = ""
        self.wish: Wish = Level.RESUME
        self.lease = Lease()
        self._problem: str | None = None
        self.changed: Callable[[], None] = _nothing
        self._covered: set[str] = set()
        self._seen: tuple[anyio.Event, ...] = ()
        self.lease_changed = anyio.Event()

    @asynccontextmanager
    async def open(self, watch: KeyWatch, keys: Keys) -> AsyncGenerator[None]:
        """Watch for the time of the block."""
        control_key, lease_key = keys.control(self._session), keys.lease(self._session)
        async with (
            watch.subscribe(control_key, lambda: ("GET", control_key), self._on_control) as wish,
            watch.subscribe(lease_key, lambda: ("HGETALL", lease_key), self._on_lease) as lease,
        ):
            self._seen = (wish.seen, lease.seen)
            yield

    async def seen(self) -> None:
        """Wait until both keys have been read once."""
        for event in self._seen:
            await event.wait()

    def verdict(self) -> Verdict:
        """What both keys say. Being fenced off outranks stop, stop interrupt, interrupt pause."""
        # A reading may be older than our own acquisition: only a newer epoch is somebody else's.
        if self.epoch and self.lease.epoch and int(self.lease.epoch) > int(self.epoch):
            return Verdict.LOST
        later = self.lease.after(self._delivery.entry, self._delivery.model)
        if self.wish is Level.STOP:
            return Verdict.STOP
        if isinstance(self.wish, StopThrough):
            named = self.wish.request
            if named in (self._request, *self._covered, *(waiter.request for waiter in later)):
                return Verdict.STOP
        # A client that is unsure asks twice: the second time is no other turn.
        if any(waiter.interrupt and waiter.request != self._request for waiter in later):
            return Verdict.INTERRUPT
        return Verdict.PAUSE if self.wish is Level.PAUSE else Verdict.SPEAK

    @property
    def unresolved(self) -> str | None:
        """The request named by ``stop:<request>``, while it is not known where it stands."""
        if isinstance(self.wish, StopThrough) and self.verdict() is not Verdict.STOP:
            return self.wish.request
        return None

    def cover(self, request: str) -> None:
        """The named request was added after this one: a stop up to it covers this one."""
        self._covered.add(request)
        self.changed()

    def _on_control(self, reply: Reply) -> None:
        problem = str(reply) if isinstance(reply, ReplyError) else None
        if problem is None:
            try:
                self.wish = control.decode(cast(bytes | None, reply))
            except FieldError as error:
                problem = str(error)
        if problem is not None and problem != self._problem:
            log.warning("control_unknown", session=self._session, error=problem)
        self._problem = problem
        self.changed()

    def _on_lease(self, reply: Reply) -> None:
        if not isinstance(reply, ReplyError):
            self.lease = Lease.decode(cast(dict[bytes, bytes], reply))
        self.lease_changed.set()
        self.lease_changed = anyio.Event()
        self.changed()


def _nothing() -> None:
    """Nobody listens yet."""
