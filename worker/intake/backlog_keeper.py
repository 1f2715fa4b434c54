"""The keeper of a model's backlog: what sessions wish is obeyed though there is no free slot.

While a worker has no slot for a model, nobody there reads the queue. One of the workers that are
full, the keeper, then looks after what waits: it parks what comes, lets it wait for its session,
and watches the sessions. A request that is to be answered without a word (stopped, interrupted,
invalid, late) needs no slot: it is taken out of the backlog and answered at once, in its order.
"""

from collections.abc import Callable, Sequence

import anyio
import structlog
from anyio.abc import TaskGroup

from voicefleet.schemas.request import InvalidRequest, Request
from voicefleet.wire.link import ReplyError
from voicefleet.worker.context import WorkerContext
from voicefleet.worker.control.session_watch import SessionWatch
from voicefleet.worker.intake.turn_runner import ENDINGS
from voicefleet.worker.store.lease_states import Claim, Standing
from voicefleet.worker.store.queues import Delivery
from voicefleet.worker.store.scripts.script import SessionKeys

log = structlog.stdlib.get_logger(__name__)

PAGE = 64
"""So many new requests are parked at once: the server and the speaking turns wait no longer."""

LOOK_S = 1.0
"""Between two comparisons with the pending list: others take from the backlog, and add to it."""

PARKING_LIMIT_S = 0.5
"""A drain waits so long for a page that was read and is not parked yet."""

IDLE_BEATS = 2
"""With a free slot for so many heartbeats there is nothing to keep."""


class BacklogKeeper:
    """Keeps one model's backlog while this worker is full and no other does.

    A key with a TTL says who is the keeper; a wrong guess about it does no harm, since requests
    change hands by script.

    Args:
        answer: Begins to answer a request without a slot. It is in our name by then.
    """

    def __init__(
        self, context: WorkerContext, model: str, answer: Callable[[Delivery], None]
    ) -> None:
        self._context = context
        self._model = model
        self._backlog = context.backlogs[model]
        self._answer = answer
        self._waiting: dict[str, anyio.CancelScope] = {}
        self._kept_keys: dict[str, SessionKeys] = {}
        self._came = anyio.Event()
        self._look = anyio.Event()

    @property
    def kept_keys(self) -> list[SessionKeys]:
        """Keys of the waiting requests' sessions, which must not expire meanwhile."""
        return list(self._kept_keys.values())

    async def run(self) -> None:
        """Be the keeper whenever it takes one, until cancelled."""
        slots, config = self._context.slots, self._context.config
        while True:
            await slots.wait_taken(self._model)
            if not await self._backlog.keep(config.dead_after_ms):
                await anyio.sleep(config.heartbeat_ms / 1000)
                continue
            log.debug("keeps_backlog", model=self._model)
            try:
                await self._keep()
            finally:
                with anyio.move_on_after(PARKING_LIMIT_S, shield=True):
                    await self._backlog.leave()

    async def _keep(self) -> None:
        """Look after the backlog until there is a free slot, or somebody else does."""
        context, queue, wake = self._context, self._context.keys.requests, self._context.keys.wake
        queue_key, wake_key = queue(self._model), wake(self._model)
        self._came, self._look = anyio.Event(), anyio.Event()
        async with (
            context.watch.subscribe(queue_key, lambda: ("XLEN", queue_key), self._on_queue),
            context.watch.subscribe(wake_key, lambda: ("GET", wake_key), self._on_wake),
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(self._park_what_comes, tasks)
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

    async def _park_what_comes(self, tasks: TaskGroup) -> None:
        """Park requests that nobody with a free slot reads."""
        while True:
            await self._came.wait()
            self._came = anyio.Event()
            while await self._park_page(tasks):
                pass

    async def _park_page(self, tasks: TaskGroup) -> bool:
        """Park one page of requests. Returns whether there may be more."""
        # Parked first, and listed in its session then: who hears of it there can find it here.
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
        """Look after all that the pending list has, and no more: others give back, and take."""
        while True:
            self._look = anyio.Event()
            known = set(self._waiting)
            listed = await self._backlog.listed()
            if listed is not None:
                for entry in known - listed.keys():
                    if entry in self._waiting:
                        self._waiting[entry].cancel()
                new: list[tuple[str, Claim]] = [
                    item for item in listed.items() if item[0] not in known
                ]
                for at in range(0, len(new), PAGE):
                    found = await self._backlog.look_up(new[at : at + PAGE])
                    await self._adopt_invalid(found, tasks)
            with anyio.move_on_after(LOOK_S):
                await self._look.wait()

    async def _adopt_invalid(self, deliveries: Sequence[Delivery], tasks: TaskGroup) -> None:
        """Begin to look after requests, or answer those that cannot be spoken."""
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
        """Look after one waiting request until it needs no slot, or waits no more."""
        entry = delivery.entry
        self._kept_keys[entry] = self._context.sessions.keys(request.session)
        try:
            needs_none = await self._enlist(delivery, request)
            with self._waiting[entry]:
                if needs_none or await self._needs_no_slot(delivery, request):
                    await self._adopt(entry)
        except ReplyError as error:
            # Something of another type stands where one of the session's keys belongs.
            log.warning("session_unusable", error=str(error), entry=entry)
            await self._adopt(entry)
        finally:
            del self._waiting[entry], self._kept_keys[entry]

    async def _enlist(self, delivery: Delivery, request: Request) -> bool:
        """Let it wait for its session. Returns whether it is answered by that already."""
        if delivery.claim is not Claim.FRESH:
            return False  # one that was given up waits there already
        config = self._context.config
        enqueued = await self._context.sessions.enqueue(
            delivery,
            request,
            most=config.max_waiting_turns,
            conversation_s=config.conversation_s,
        )
        if enqueued.talks:
            await self._backlog.promote(delivery.entry)
        return enqueued.standing in (Standing.ALREADY_ANSWERED, Standing.SESSION_FULL)

    async def _needs_no_slot(self, delivery: Delivery, request: Request) -> bool:
        """Wait until the request can be answered without a word; ``False``: it is another's."""
        context, limit_s = self._context, None
        view = SessionWatch(delivery, request.session, request.name)
        async with view.open(context.watch, context.keys):
            await view.seen()
            if request.deadline_ms is not None:
                limit_s = max(0.0, (request.deadline_ms - context.clock.now_ms()) / 1000)
            with anyio.move_on_after(limit_s):
                return await self._is_ended(view, delivery, request)
            # A turn that was begun is not late any more: it waits to be taken over.
            return not view.is_spoken or await self._is_ended(view, delivery, request)

    async def _is_ended(self, view: SessionWatch, delivery: Delivery, request: Request) -> bool:
        """Wait until the session ends the request; ``False``: somebody speaks it."""
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
        """Take a request out of the backlog, and answer it."""
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + PARKING_LIMIT_S):
            delivery = await self._backlog.adopt(entry)
            if delivery is not None:
                self._answer(delivery)
