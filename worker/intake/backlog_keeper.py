"""Answer requests that need no slot while no slot is free.

A worker without a free slot for a model does not read the model's queue. One of the workers that
are full, the keeper, looks after the requests that wait. It parks new requests in the backlog,
gives each its place in its session, and watches the sessions. A request that will end unspoken
(stopped, interrupted, invalid or expired) needs no slot: the keeper takes it out of the backlog and
answers it at once, in its session's order.
"""

from collections.abc import Callable, Sequence

import anyio
import structlog
from anyio.abc import TaskGroup

from voicefleet.schemas.request import InvalidRequest, Request
from voicefleet.wire.link import ReplyError
from voicefleet.worker.context import WorkerContext
from voicefleet.worker.control.session_watch import ENDINGS, SessionWatch
from voicefleet.worker.intake.job_state import DONE_BY, JobState
from voicefleet.worker.store.lease_states import Claim
from voicefleet.worker.store.queues import Delivery

log = structlog.stdlib.get_logger(__name__)

PAGE = 64
"""How many new requests are parked in one call. A larger page would delay frames."""

LOOK_S = 1.0
"""The time between two comparisons with the pending list, which other workers change."""

PARKING_LIMIT_S = 0.5
"""How long a drain waits for a page that has been read and not parked."""

IDLE_BEATS = 2
"""After a slot was free for so many heartbeats, there is no backlog to keep."""


class BacklogKeeper:
    """Keeps one model's backlog while this worker is full and no other worker keeps it.

    A key with a TTL names the keeper. Two keepers at a time do no harm: scripts move the requests.

    Args:
        context: The worker's parts.
        model: Whose backlog is kept.
        answer: Begins a job without a slot, for an entry that is pending in our name.
    """

    def __init__(
        self, context: WorkerContext, model: str, answer: Callable[[Delivery], None]
    ) -> None:
        self._context = context
        self._model = model
        self._backlog = context.backlogs[model]
        self._answer = answer
        self._waiting: dict[str, anyio.CancelScope] = {}
        self._kept_keys: dict[str, Sequence[str]] = {}
        self._came = anyio.Event()
        self._look = anyio.Event()

    @property
    def kept_keys(self) -> list[Sequence[str]]:
        """The session keys of the waiting requests: they must not expire."""
        return list(self._kept_keys.values())

    async def run(self) -> None:
        """Become the keeper whenever the model needs one, until cancelled."""
        slots, config = self._context.slots, self._context.config
        while True:
            await slots.wait_taken(self._model)
            if not await self._backlog.keep(config.dead_after_ms):
                await anyio.sleep(config.heartbeat_ms / 1000)
                continue
            log.debug("keeping_backlog", model=self._model)
            try:
                await self._keep()
            finally:
                with anyio.move_on_after(PARKING_LIMIT_S, shield=True):
                    await self._backlog.leave()

    async def _keep(self) -> None:
        """Keep the backlog until slots stay free or another worker is the keeper."""
        context, queue, wake = self._context, self._context.keys.requests, self._context.keys.wake
        queue_key, wake_key = queue(self._model), wake(self._model)
        self._came, self._look = anyio.Event(), anyio.Event()
        async with (
            context.watch.subscribe(queue_key, lambda: ("XLEN", queue_key), self._on_queue),
            context.watch.subscribe(wake_key, lambda: ("GET", wake_key), self._on_wake),
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(self._park_new, tasks)
            tasks.start_soon(self._compare, tasks)
            idle_beats = 0
            while idle_beats < IDLE_BEATS:
                await anyio.sleep(context.config.heartbeat_ms / 1000)
                if not await self._backlog.keep(context.config.dead_after_ms):
                    break
                is_free = context.slots.is_free(self._model)
                idle_beats = idle_beats + 1 if is_free else 0
            tasks.cancel_scope.cancel()

    def _on_queue(self, reply: object) -> None:
        self._came.set()

    def _on_wake(self, reply: object) -> None:
        self._look.set()

    async def _park_new(self, tasks: TaskGroup) -> None:
        """Park new requests whenever the queue changes."""
        while True:
            await self._came.wait()
            self._came = anyio.Event()
            while await self._park_page(tasks):
                pass

    async def _park_page(self, tasks: TaskGroup) -> bool:
        """Park one page of requests. Returns whether there may be more."""
        # Parked first: whoever sees its place in the session finds it in the backlog.
        with anyio.move_on_after(PARKING_LIMIT_S, shield=True):
            deliveries = await self._backlog.read(PAGE)
            valid: list[tuple[Delivery, Request]] = []
            for delivery in deliveries:
                try:
                    valid.append((delivery, self._context.read(delivery)))
                except InvalidRequest:
                    self._answer(delivery)
            await self._backlog.park([delivery.entry for delivery, _ in valid])
            self._begin(valid, tasks)
            return len(deliveries) == PAGE
        return False

    async def _compare(self, tasks: TaskGroup) -> None:
        """Watch exactly the requests that the pending list has waiting for a slot."""
        while True:
            self._look = anyio.Event()
            watched = set(self._waiting)
            listed = await self._backlog.listed()
            if listed is not None:
                for entry in watched - listed.keys():
                    if entry in self._waiting:
                        self._waiting[entry].cancel()
                new: list[tuple[str, Claim]] = [
                    item for item in listed.items() if item[0] not in watched
                ]
                for at in range(0, len(new), PAGE):
                    found = await self._backlog.look_up(new[at : at + PAGE])
                    await self._adopt_invalid(found, tasks)
            with anyio.move_on_after(LOOK_S):
                await self._look.wait()

    async def _adopt_invalid(self, deliveries: Sequence[Delivery], tasks: TaskGroup) -> None:
        """Begin to watch requests; answer those that are invalid."""
        valid: list[tuple[Delivery, Request]] = []
        for delivery in deliveries:
            try:
                valid.append((delivery, self._context.read(delivery)))
            except InvalidRequest:
                await self._adopt(delivery.entry)
        self._begin(valid, tasks)

    def _begin(self, valid: Sequence[tuple[Delivery, Request]], tasks: TaskGroup) -> None:
        for delivery, request in valid:
            if delivery.entry not in self._waiting:
                self._waiting[delivery.entry] = anyio.CancelScope()
                tasks.start_soon(self._attend, delivery, request)

    async def _attend(self, delivery: Delivery, request: Request) -> None:
        """Watch one waiting request until it needs no slot, or no longer waits for one."""
        entry = delivery.entry
        self._kept_keys[entry] = self._context.sessions.keys(request.session)
        try:
            needs_none = await self._enlist(delivery, request)
            with self._waiting[entry]:
                if needs_none or await self._needs_no_slot(delivery, request):
                    await self._adopt(entry)
        except ReplyError as error:
            # A value of another type stands where one of the session's keys belongs.
            log.warning("session_unusable", error=str(error), entry=entry)
            await self._adopt(entry)
        finally:
            del self._waiting[entry], self._kept_keys[entry]

    async def _enlist(self, delivery: Delivery, request: Request) -> bool:
        """Give it a place in its session. Returns whether it is answered already."""
        if delivery.claim is not Claim.FRESH:
            return False  # its first owner did so
        config = self._context.config
        enqueued = await self._context.sessions.enqueue(
            delivery,
            request,
            most=config.max_waiting_turns,
            conversation_s=config.conversation_s,
        )
        if enqueued.talks:
            await self._backlog.promote(delivery.entry)
        return DONE_BY.get(enqueued.standing) is JobState.ANSWERED

    async def _needs_no_slot(self, delivery: Delivery, request: Request) -> bool:
        """Wait until the request is to end unspoken; ``False``: another worker speaks it."""
        context, limit_s = self._context, None
        view = SessionWatch(delivery, request.session, request.name)
        async with view.open(context.watch, context.keys):
            await view.seen()
            if request.deadline_ms is not None:
                limit_s = max(0.0, (request.deadline_ms - context.clock.now_ms()) / 1000)
            with anyio.move_on_after(limit_s):
                return await self._is_ended(view, delivery, request)
            # A turn that has begun cannot expire: it waits for a worker to take it over.
            return not view.is_spoken or await self._is_ended(view, delivery, request)

    async def _is_ended(self, view: SessionWatch, delivery: Delivery, request: Request) -> bool:
        """Wait until the session ends the request; ``False``: another worker speaks it."""
        asked: str | None = None
        while True:
            changed = view.differs
            if view.directive() in ENDINGS:
                return True
            if delivery.claim is Claim.FRESH and view.is_spoken:
                return False
            named = view.unresolved
            if named is not None and named != asked:
                asked = named
                if await self._context.queues.is_added_later(delivery, request.session, named):
                    view.cover(named)
                continue
            await changed.wait()

    async def _adopt(self, entry: str) -> None:
        """Take a request out of the backlog and answer it."""
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + PARKING_LIMIT_S):
            delivery = await self._backlog.adopt(entry)
            if delivery is not None:
                self._answer(delivery)
