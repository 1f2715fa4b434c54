"""What one turn has to do now, read from its session's control key and lease."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from enum import Enum
from typing import Final, cast

import anyio
import structlog

from voicefleet.schemas import control
from voicefleet.schemas.audio import Reason
from voicefleet.schemas.control import ControlValue, Level, StopThrough
from voicefleet.schemas.fields import FieldError
from voicefleet.schemas.keys import Keys
from voicefleet.wire.link import Reply, ReplyError
from voicefleet.worker.control.key_watch import KeyWatch
from voicefleet.worker.store.queues import Delivery
from voicefleet.worker.store.sessions import Lease, Waiter

log = structlog.stdlib.get_logger(__name__)


class Directive(Enum):
    """What a turn is told to do."""

    SPEAK = "speak"
    """Speak, or resume."""
    PAUSE = "pause"
    """Publish no further frame until told to."""
    STOP = "stop"
    """End, with reason ``stopped``: the control key says so."""
    INTERRUPT = "interrupt"
    """End, with reason ``interrupted``: an interrupting request waits."""
    YIELD = "yield"
    """Publish nothing more, not even an end: another worker has taken the lease."""


ENDINGS: Final[dict[Directive, Reason]] = {
    Directive.STOP: "stopped",
    Directive.INTERRUPT: "interrupted",
}
"""The directives that end a turn, and the reason in its end entry."""


class SessionWatch:
    """One turn's view of its session's control key and lease.

    Both keys are levels: their present value holds, whenever it was written. ``changed`` is called
    after each reading and must return at once. ``lease_read`` is set by the next reading of the
    lease, at the latest after ``RECONCILE_S``, and then replaced by a new event; ``differs`` is set
    and replaced when either key has a new value. ``epoch`` is this worker's, once it has one.
    """

    def __init__(self, delivery: Delivery, session: str, request: str) -> None:
        self._delivery = delivery
        self._session = session
        self._request = request
        self.epoch = ""
        self.control: ControlValue = Level.RESUME
        self.lease = Lease()
        self._problem: str | None = None
        self.changed: Callable[[], None] = _nothing
        self._covered: set[str] = set()
        self._seen: tuple[anyio.Event, ...] = ()
        self.lease_read = anyio.Event()
        self.differs = anyio.Event()

    @asynccontextmanager
    async def open(self, watch: KeyWatch, keys: Keys) -> AsyncGenerator[None]:
        """Watch for the time of the block."""
        control_key, lease_key = keys.control(self._session), keys.lease(self._session)
        async with (
            watch.subscribe(control_key, lambda: ("GET", control_key), self._on_control) as value,
            watch.subscribe(lease_key, lambda: ("HGETALL", lease_key), self._on_lease) as lease,
        ):
            self._seen = (value.seen, lease.seen)
            yield

    async def seen(self) -> None:
        """Wait until both keys have been read once."""
        for event in self._seen:
            await event.wait()

    def directive(self) -> Directive:
        """What the turn has to do. Precedence: yield, stop, interrupt, pause, speak."""
        # A reading may be older than our own lease: only a greater epoch is another owner's.
        if self.epoch and self.lease.epoch and int(self.lease.epoch) > int(self.epoch):
            return Directive.YIELD
        later = self.lease.after(self._delivery.entry, self._delivery.model)
        if self.control is Level.STOP:
            return Directive.STOP
        if isinstance(self.control, StopThrough):
            named = self.control.request
            if named in (self._request, *self._covered, *(waiter.request for waiter in later)):
                return Directive.STOP
        if self.interrupter is not None:
            return Directive.INTERRUPT
        return Directive.PAUSE if self.control is Level.PAUSE else Directive.SPEAK

    @property
    def interrupter(self) -> Waiter | None:
        """The last waiting request that interrupts this turn, and all those between the two."""
        later = self.lease.after(self._delivery.entry, self._delivery.model)
        # A client that sends a request twice does not interrupt itself.
        others = [w for w in later if w.interrupt and w.request != self._request]
        return others[-1] if others else None

    @property
    def is_spoken(self) -> bool:
        """Whether any worker holds the session's lease for this very request."""
        mine = (self._delivery.entry, self._delivery.model)
        return self.lease.active and (self.lease.entry, self.lease.model) == mine

    @property
    def unresolved(self) -> str | None:
        """The request that ``stop:<request>`` names, until we know whether it was added later."""
        if isinstance(self.control, StopThrough) and self.directive() is not Directive.STOP:
            return self.control.request
        return None

    def cover(self, request: str) -> None:
        """Note that the named request was added later: its ``stop:<request>`` ends this one too."""
        self._covered.add(request)
        self._notify()

    def _on_control(self, reply: Reply) -> None:
        problem = str(reply) if isinstance(reply, ReplyError) else None
        before = self.control
        if problem is None:
            try:
                self.control = control.decode(cast(bytes | None, reply))
            except FieldError as error:
                problem = str(error)
        if problem is not None and problem != self._problem:
            log.warning("control_unknown", session=self._session, error=problem)
        self._problem = problem
        if self.control != before:
            self._notify()
        else:
            self.changed()

    def _on_lease(self, reply: Reply) -> None:
        before = self.lease
        if not isinstance(reply, ReplyError):
            self.lease = Lease.decode(cast(dict[bytes, bytes], reply))
        self.lease_read.set()
        self.lease_read = anyio.Event()
        if self.lease != before:
            self._notify()
        else:
            self.changed()

    def _notify(self) -> None:
        self.differs.set()
        self.differs = anyio.Event()
        self.changed()


def _nothing() -> None:
    """The default of ``changed``: nobody is told."""
