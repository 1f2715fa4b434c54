"""The clients of a run: every session of a plan, to the end of its last turn."""

from typing import Final

import anyio

from verify.chaos.conversation import Conversation
from verify.chaos.hearing import Ears
from verify.chaos.journal import Journal
from verify.chaos.library import LibraryConversation
from verify.chaos.plan import Course, Orchestrator, Plan
from verify.chaos.reading import Reading
from verify.chaos.request_writer import Desk, Order
from voicefleet import VoiceFleet
from voicefleet.schemas.keys import Keys
from voicefleet.wire.connect import connect
from voicefleet.wire.endpoint import RedisConfig, resolve

MEETING_S: Final = 3.0
"""How long a session waits for others to add requests together."""

FAREWELL_S: Final = 10.0
APART_S: Final = 0.03
"""Between the beginnings of sessions."""


class Meeting:
    """Lets the sessions of one orchestrator add requests in one pipeline."""

    def __init__(self, desk: Desk, members: int) -> None:
        self._members = members
        self._desk = desk
        self._orders: list[Order] = []
        self._all_here = anyio.Event()
        self._added = anyio.Event()

    async def add(self, order: Order) -> None:
        """See ``Assembly``. Who comes first waits for the others, but not for long, and adds."""
        self._orders.append(order)
        added = self._added
        self._count()
        if len(self._orders) > 1:
            await added.wait()
            return
        with anyio.move_on_after(MEETING_S):
            await self._all_here.wait()
        orders, self._orders = self._orders, []
        self._all_here, self._added = anyio.Event(), anyio.Event()
        await self._desk.add(orders)
        added.set()

    def leave(self) -> None:
        """One fewer is to come."""
        self._members -= 1
        self._count()

    def _count(self) -> None:
        if len(self._orders) >= self._members:
            self._all_here.set()


async def drive(url: str, plan: Plan, journal: Journal, *, until_answered_s: float) -> bool:
    """Run all clients until each request has its end. Control keys are deleted then.

    Args:
        url: Of the server, the Sentinels or the Cluster.
        plan: What they do.
        journal: What they did is written there.
        until_answered_s: Give up then.

    Returns:
        Whether all was answered.
    """
    keys, answered = Keys(), False
    raw = [course.session for course in plan.courses if not course.by_library]
    ears = Ears(raw, journal)
    async with connect(resolve(RedisConfig(url=url))) as topology, VoiceFleet(url) as fleet:
        desk = Desk(topology.client, keys, journal)
        try:
            with anyio.move_on_after(until_answered_s):
                async with anyio.create_task_group() as readers:
                    if raw:
                        readers.start_soon(Reading(topology, keys, raw, ears).run)
                    async with anyio.create_task_group() as clients:
                        for orchestrator in plan.orchestrators:
                            one = _Orchestrator(orchestrator, plan, desk, ears, fleet, journal)
                            clients.start_soon(one.run)
                    answered = True
                    readers.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(FAREWELL_S):
                for session in plan.sessions:
                    await desk.control_value(session, "")
            journal.flush()
    return answered


class _Orchestrator:
    """The sessions of one client."""

    def __init__(
        self,
        orchestrator: Orchestrator,
        plan: Plan,
        desk: Desk,
        ears: Ears,
        fleet: VoiceFleet,
        journal: Journal,
    ) -> None:
        self._courses = orchestrator.courses
        self._plan = plan
        self._desk = desk
        self._ears = ears
        self._fleet = fleet
        self._journal = journal
        raw = [course for course in self._courses if not course.by_library]
        self._meeting = Meeting(desk, len(raw))

    async def run(self) -> None:
        async with anyio.create_task_group() as sessions:
            for course in self._courses:
                sessions.start_soon(self._library if course.by_library else self._raw, course)
                await anyio.sleep(APART_S)

    async def _raw(self, course: Course) -> None:
        hearing = self._ears.of[course.session]
        plan = self._plan
        await Conversation(
            course, plan.main, plan.utterances, self._desk, hearing, self._meeting
        ).run()
        self._meeting.leave()

    async def _library(self, course: Course) -> None:
        plan = self._plan
        await LibraryConversation(
            course, plan.main, plan.utterances, self._fleet, self._journal
        ).run()
