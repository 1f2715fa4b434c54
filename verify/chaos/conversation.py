"""One session, driven with raw commands by a careful client.

What it asked and got no answer to, it asks again, as the protocol invites: after a server forgot,
and where nothing comes though everything before it has ended.
"""

import time
from collections.abc import Mapping
from typing import Final, Protocol

import anyio
from anyio.abc import TaskGroup

from verify.chaos.hearing import Hearing
from verify.chaos.plan import Course
from verify.chaos.repertoire import Utterance
from verify.chaos.request_writer import Desk, Order
from verify.chaos.script import (
    Add,
    Again,
    Ask,
    ControlValue,
    Hear,
    Move,
    Rest,
    Scene,
    Together,
    Until,
)

SILENCE_S: Final = 4.0
"""Without an entry for so long, a client becomes unsure."""

_LOOK_S: Final = 0.5


class Assembly(Protocol):
    """Adds requests of several sessions in one pipeline."""

    async def add(self, order: Order) -> None:
        """Add it, with those that others bring about now."""
        ...


class Conversation:
    """Plays a session's course. ``run`` returns when each request has its end."""

    def __init__(
        self,
        course: Course,
        main: str,
        utterances: Mapping[str, Utterance],
        desk: Desk,
        hearing: Hearing,
        assembly: Assembly,
    ) -> None:
        self._course = course
        self._session = course.session
        self._main = main
        self._utterances = utterances
        self._desk = desk
        self._hearing = hearing
        self._assembly = assembly
        self._orders: dict[str, Order] = {}
        self._open: list[str] = []
        self._written: dict[str, int] = {}
        self._wish = ""
        self._asked_at = 0.0
        self._asking = anyio.Lock()

    async def run(self) -> None:
        """Play all scenes."""
        for scene in self._course.scenes:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._insist)
                await self._play(scene, tasks)
                await self._hearing.ended(ask.request for ask in scene.asks)
                tasks.cancel_scope.cancel()
            self._open.clear()

    async def _play(self, scene: Scene, tasks: TaskGroup) -> None:
        for move in scene.moves:
            await self._make(move, tasks)

    async def _make(self, move: Move, tasks: TaskGroup) -> None:
        match move:
            case Add(asks):
                async with self._asking:
                    await self._desk.add([self._order(ask) for ask in asks])
                self._asked(asks, tasks)
            case Together(ask):
                await self._assembly.add(self._order(ask))
                self._asked((ask,), tasks)
            case Again(request):
                async with self._asking:
                    await self._desk.add([self._orders[request]], again=True)
            case Hear(request, frames):
                await self._hearing.heard(request, frames)
            case Rest(seconds):
                await anyio.sleep(seconds)
            case ControlValue(value):
                self._wish = value
                await self._desk.control_value(self._session, value)
            case Until(requests):
                await self._hearing.ended(requests)

    def _order(self, ask: Ask) -> Order:
        utterance = self._utterances.get(ask.utterance)
        order = Order.of(self._session, self._main, ask, utterance)
        self._orders[ask.request] = order
        return order

    def _asked(self, asks: tuple[Ask, ...], tasks: TaskGroup) -> None:
        self._asked_at = time.monotonic()
        for ask in asks:
            self._open.append(ask.request)
            if "stream" in self._orders[ask.request].fields:
                tasks.start_soon(self._write, ask)

    async def _write(self, ask: Ask) -> None:
        """Write the text piece by piece, until it or the turn is over."""
        pieces = self._utterances[ask.utterance].pieces
        for count, piece in enumerate(pieces, 1):
            await anyio.sleep(piece.gap_s)
            if self._hearing.of(ask.request).ended:
                return
            self._written[ask.request] = count
            await self._mend(ask)

    async def _mend(self, ask: Ask) -> None:
        """See to it that what was written of the text is there."""
        pieces = self._utterances[ask.utterance].pieces
        count = self._written.get(ask.request, 0)
        await self._desk.write(self._session, ask.request, pieces[:count], end=count == len(pieces))

    # When in doubt.

    async def _insist(self) -> None:
        forgotten = self._hearing.forgotten
        while True:
            await anyio.sleep(_LOOK_S)
            waiting = [name for name in self._open if not self._hearing.of(name).ended]
            if self._hearing.forgotten != forgotten:
                forgotten = self._hearing.forgotten
                await self._again(waiting)
            elif waiting and self._silent_s() > SILENCE_S:
                await self._again(waiting[:1])

    def _silent_s(self) -> float:
        """Since when nothing has happened in the session, though something should."""
        latest = max(self._hearing.of(name).at for name in self._open)
        return 0.0 if self._wish == "pause" else time.monotonic() - max(latest, self._asked_at)

    async def _again(self, requests: list[str]) -> None:
        """Say again what is wanted, and how."""
        await self._desk.control_value(self._session, self._wish)
        async with self._asking:
            await self._desk.add([self._orders[name] for name in requests], again=True)
        for name in requests:
            if self._written.get(name):
                await self._mend(self._orders[name].ask)
        self._asked_at = time.monotonic()
