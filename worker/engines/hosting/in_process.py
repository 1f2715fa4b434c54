"""Runs a core in this process, for profilers and debuggers. Not for use in a worker."""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import anyio
import msgspec
from anyio.lowlevel import checkpoint

from voicefleet.worker.engines.hosting.core import Core, CoreFactory
from voicefleet.worker.engines.hosting.messages import Audio, Event, Failed, Spoken
from voicefleet.worker.engines.protocol import Chunk, EngineError, EngineInfo, Segment, TurnSpec
from voicefleet.worker.voicepacks.voicepack import Voicepack


class InProcessEngine:
    """An ``Engine`` that runs its core on the event loop, and blocks the loop for each step.

    It speaks one turn at a time, and reads all of its text before the first step.
    """

    def __init__(
        self, pack: Voicepack, factory: CoreFactory, config: msgspec.Struct | Mapping[str, Any]
    ) -> None:
        self._pack = pack
        self._factory = factory
        self._config = config
        self._events = deque[Event]()
        self._core: Core | None = None

    @property
    def info(self) -> EngineInfo:
        """The model's capabilities. Raises ``EngineError`` while it is not loaded."""
        return self._loaded().info

    @property
    def timings(self) -> Mapping[str, float]:
        """Milliseconds of each phase of load and warm-up. Raises ``EngineError``."""
        return self._loaded().timings

    async def load(self) -> None:
        """Load the model here. Raises ``EngineLoadError``."""
        core = self._factory(self._pack, self._config, self._events.append)
        core.load()
        self._core = core

    async def warm_up(self, text: str) -> None:
        """Do everything that is slow the first time."""
        self._loaded().warm_up(text)

    async def speak(
        self, spec: TurnSpec, segments: AsyncIterator[Segment]
    ) -> AsyncGenerator[Chunk]:
        """Speak the segments. See ``Engine.speak``."""
        core, turn, consumed = self._loaded(), 1, 0
        self._events.clear()
        core.open(turn, spec)
        try:
            async for segment in segments:
                core.push(turn, segment)
            core.end(turn)
            while True:
                if not self._events and not core.step() and not self._events:
                    raise EngineError(f"{self._pack.model_id} stands still before its turn is over")
                for event in self._taken():
                    match event:
                        case Audio():
                            consumed += len(event.array)
                            core.consumed(turn, consumed)
                            yield Chunk(event.array, event.marks)
                        case Failed():
                            raise event.error
                        case Spoken():
                            return
                        case _:
                            pass
                await checkpoint()
        finally:
            core.cancel(turn)

    async def lost(self) -> str:
        """Never returns."""
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async def unload(self) -> None:
        """Close the core. Its libraries keep some memory until this process ends."""
        core, self._core = self._core, None
        if core is not None:
            core.close()

    def _taken(self) -> list[Event]:
        events = list(self._events)
        self._events.clear()
        return events

    def _loaded(self) -> Core:
        if self._core is None:
            raise EngineError(f"{self._pack.model_id} is not loaded")
        return self._core
