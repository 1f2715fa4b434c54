"""The clients of a run: every session of a plan, to the end of its last turn."""

from typing import Final

import anyio

from verify.chaos.conversation import Conversation
from verify.chaos.journal import Journal
from verify.chaos.plan import Orchestrator, Plan, SessionScript
from verify.chaos.python_client import ClientConversation
from verify.chaos.reading import Reading
from verify.chaos.request_writer import Order, RequestWriter
from verify.chaos.stream_view import StreamViews
from voicefleet import VoiceFleet
from voicefleet.schemas.keys import Keys
from voicefleet.wire.connect import connect
from voicefleet.wire.endpoint import RedisConfig, resolve

BATCH_WAIT_S: Final = 3.0
"""How long a session waits for others to share a pipeline with."""

CLEANUP_S: Final = 10.0
START_GAP_S: Final = 0.03
"""Between the starts of two sessions."""


class PipelineBatcher:
    """Lets the sessions of one orchestrator add requests in one pipeline."""

    def __init__(self, writer: RequestWriter, members: int) -> None:
        self._members = members
        self._writer = writer
        self._orders: list[Order] = []
        self._all_here = anyio.Event()
        self._added = anyio.Event()

    async def add(self, order: Order) -> None:
        """See ``Batcher``. The first caller waits a while for the others, then adds for all."""
        self._orders.append(order)
        added = self._added
        self._count()
        if len(self._orders) > 1:
            await added.wait()
            return
        with anyio.move_on_after(BATCH_WAIT_S):
            await self._all_here.wait()
        orders, self._orders = self._orders, []
        self._all_here, self._added = anyio.Event(), anyio.Event()
        await self._writer.add(orders)
        added.set()

    def leave(self) -> None:
        """A session has ended: wait for one fewer."""
        self._members -= 1
        self._count()

    def _count(self) -> None:
        if len(self._orders) >= self._members:
            self._all_here.set()


async def drive(url: str, plan: Plan, journal: Journal, *, until_answered_s: float) -> bool:
    """Run all clients until each request has its end, then delete the control keys.

    Args:
        url: The server, the Sentinels or the Cluster.
        plan: What they do.
        journal: Gets what they did.
        until_answered_s: Give up after so many seconds.

    Returns:
        Whether every request was answered.
    """
    keys, answered = Keys(), False
    raw = [script.session for script in plan.scripts if not script.by_client]
    views = StreamViews(raw, journal)
    async with connect(resolve(RedisConfig(url=url))) as topology, VoiceFleet(url) as fleet:
        writer = RequestWriter(topology.client, keys, journal)
        try:
            with anyio.move_on_after(until_answered_s):
                async with anyio.create_task_group() as readers:
                    if raw:
                        readers.start_soon(Reading(topology, keys, raw, views).run)
                    async with anyio.create_task_group() as clients:
                        for orchestrator in plan.orchestrators:
                            one = _Orchestrator(orchestrator, plan, writer, views, fleet, journal)
                            clients.start_soon(one.run)
                    answered = True
                    readers.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(CLEANUP_S):
                for session in plan.sessions:
                    await writer.control_value(session, "")
            journal.flush()
    return answered


class _Orchestrator:
    """The sessions of one client."""

    def __init__(
        self,
        orchestrator: Orchestrator,
        plan: Plan,
        writer: RequestWriter,
        views: StreamViews,
        fleet: VoiceFleet,
        journal: Journal,
    ) -> None:
        self._scripts = orchestrator.scripts
        self._plan = plan
        self._writer = writer
        self._views = views
        self._fleet = fleet
        self._journal = journal
        raw = [script for script in self._scripts if not script.by_client]
        self._batcher = PipelineBatcher(writer, len(raw))

    async def run(self) -> None:
        async with anyio.create_task_group() as sessions:
            for script in self._scripts:
                sessions.start_soon(self._library if script.by_client else self._raw, script)
                await anyio.sleep(START_GAP_S)

    async def _raw(self, script: SessionScript) -> None:
        view = self._views.of[script.session]
        plan = self._plan
        await Conversation(
            script, plan.main, plan.utterances, self._writer, view, self._batcher
        ).run()
        self._batcher.leave()

    async def _library(self, script: SessionScript) -> None:
        plan = self._plan
        await ClientConversation(
            script, plan.main, plan.utterances, self._fleet, self._journal
        ).run()
