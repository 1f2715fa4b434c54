"""Drives one session with raw commands, as a careful client.

It adds a request again, as the protocol allows, where no answer came: after a server lost data, and
after a silence though all earlier requests have ended.
"""

import time
from collections.abc import Mapping
from typing import Final, Protocol

import anyio
from anyio.abc import TaskGroup

from verify.chaos.plan import SessionScript
from verify.chaos.request_writer import Order, RequestWriter
from verify.chaos.script import (
    Add,
    AddAgain,
    AddTogether,
    Ask,
    Scene,
    SetControl,
    Sleep,
    Step,
    WaitForEnds,
    WaitForFrames,
)
from verify.chaos.stream_view import StreamView
from verify.chaos.utterances import Utterance

SILENCE_S: Final = 4.0
"""After so many seconds without an entry, a client adds its oldest open request again."""

_LOOK_S: Final = 0.5


class Batcher(Protocol):
    """Adds requests of several sessions in one pipeline."""

    async def add(self, order: Order) -> None:
        """Add it, together with what other sessions add now."""
        ...


class Conversation:
    """Plays a session's script. ``run`` returns when each request has its end."""

    def __init__(
        self,
        script: SessionScript,
        main: str,
        utterances: Mapping[str, Utterance],
        writer: RequestWriter,
        view: StreamView,
        batcher: Batcher,
    ) -> None:
        self._script = script
        self._session = script.session
        self._main = main
        self._utterances = utterances
        self._writer = writer
        self._view = view
        self._batcher = batcher
        self._orders: dict[str, Order] = {}
        self._open: list[str] = []
        self._written: dict[str, int] = {}
        self._control = ""
        self._asked_at = 0.0
        self._asking = anyio.Lock()

    async def run(self) -> None:
        """Play all scenes."""
        for scene in self._script.scenes:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._repeat_unanswered)
                await self._play(scene, tasks)
                await self._view.ended(ask.request for ask in scene.asks)
                tasks.cancel_scope.cancel()
            self._open.clear()

    async def _play(self, scene: Scene, tasks: TaskGroup) -> None:
        for step in scene.steps:
            await self._make(step, tasks)

    async def _make(self, step: Step, tasks: TaskGroup) -> None:
        match step:
            case Add(asks):
                async with self._asking:
                    await self._writer.add([self._order(ask) for ask in asks])
                self._asked(asks, tasks)
            case AddTogether(ask):
                await self._batcher.add(self._order(ask))
                self._asked((ask,), tasks)
            case AddAgain(request):
                async with self._asking:
                    await self._writer.add([self._orders[request]], again=True)
            case WaitForFrames(request, frames):
                await self._view.heard(request, frames)
            case Sleep(seconds):
                await anyio.sleep(seconds)
            case SetControl(value):
                self._control = value
                await self._writer.control_value(self._session, value)
            case WaitForEnds(requests):
                await self._view.ended(requests)

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
        """Write the text piece by piece, until it is complete or the turn has ended."""
        pieces = self._utterances[ask.utterance].pieces
        for count, piece in enumerate(pieces, 1):
            await anyio.sleep(piece.gap_s)
            if self._view.of(ask.request).ended:
                return
            self._written[ask.request] = count
            await self._complete_text(ask)

    async def _complete_text(self, ask: Ask) -> None:
        """Make sure that the text stream holds all pieces written so far."""
        pieces = self._utterances[ask.utterance].pieces
        count = self._written.get(ask.request, 0)
        await self._writer.write(
            self._session, ask.request, pieces[:count], end=count == len(pieces)
        )

    async def _repeat_unanswered(self) -> None:
        forgotten = self._view.forgotten
        while True:
            await anyio.sleep(_LOOK_S)
            waiting = [name for name in self._open if not self._view.of(name).ended]
            if self._view.forgotten != forgotten:
                forgotten = self._view.forgotten
                await self._again(waiting)
            elif waiting and self._silent_s() > SILENCE_S:
                await self._again(waiting[:1])

    def _silent_s(self) -> float:
        """Seconds since the session's last entry or add; 0 while it is paused."""
        latest = max(self._view.of(name).at for name in self._open)
        return 0.0 if self._control == "pause" else time.monotonic() - max(latest, self._asked_at)

    async def _again(self, requests: list[str]) -> None:
        """Set the control value and add the requests again."""
        await self._writer.control_value(self._session, self._control)
        async with self._asking:
            await self._writer.add([self._orders[name] for name in requests], again=True)
        for name in requests:
            if self._written.get(name):
                await self._complete_text(self._orders[name].ask)
        self._asked_at = time.monotonic()
