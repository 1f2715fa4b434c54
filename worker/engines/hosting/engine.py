"""An engine whose work is done in a child process: the worker's side of any core."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import anyio
import msgspec
import structlog

from voicefleet.worker.engines.hosting.messages import End, Push, Start
from voicefleet.worker.engines.hosting.remote import RemoteCore, RemoteTurn
from voicefleet.worker.engines.protocol import Chunk, EngineError, EngineInfo, Segment, TurnSpec
from voicefleet.worker.voicepacks.voicepack import Voicepack

log = structlog.get_logger()


class HostedEngine:
    """An engine in a process of its own. See ``worker.engines.protocol.Engine``.

    Args:
        pack: The model.
        core: What runs in the child: a family, or ``module:attribute`` (``hosting.cores``).
        config: The core's section of the configuration.
        synthesis_timeout_s: A loaded child that gives no sign of life for so long hangs; it is
            killed, its turns fail and can be tried again.
        load_timeout_s: The limit of the load, and of the warm-up.
    """

    def __init__(
        self,
        pack: Voicepack,
        core: str,
        config: msgspec.Struct | Mapping[str, Any],
        *,
        synthesis_timeout_s: float = 5.0,
        load_timeout_s: float = 120.0,
    ) -> None:
        self._pack = pack
        self._start = Start(core, str(pack.directory.resolve()), msgspec.to_builtins(config))
        self._synthesis_timeout_s = synthesis_timeout_s
        self._load_timeout_s = load_timeout_s
        self._core: RemoteCore | None = None

    @property
    def info(self) -> EngineInfo:
        """What the loaded model can do now. Raises ``EngineError`` while it is not loaded."""
        info = self._running().info
        assert info is not None
        return info

    @property
    def timings(self) -> Mapping[str, float]:
        """Milliseconds by phase, of load and warm-up. Raises ``EngineError``."""
        return self._running().timings

    @property
    def pid(self) -> int:
        """The child's process id. Raises ``EngineError`` while there is none."""
        return self._running().pid

    async def load(self) -> None:
        """Start the child and load the model there. Raises ``EngineLoadError``."""
        await self.unload()
        core = await RemoteCore.start(self._pack.model_id, self._synthesis_timeout_s)
        try:
            await core.load(self._start, self._load_timeout_s)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await core.stop()
            raise
        self._core = core
        self._tell("engine_loaded")

    async def warm_up(self, text: str) -> None:
        """Have the child do all that is slow the first time. Raises ``EngineLoadError``."""
        await self._running().warm_up(text, self._load_timeout_s)
        self._tell("engine_warm")

    async def speak(
        self, spec: TurnSpec, segments: AsyncIterator[Segment]
    ) -> AsyncGenerator[Chunk]:
        """Speak the segments. See ``Engine.speak``.

        How far the child runs ahead of the consumer is bounded by its core.
        """
        core = self._running()
        turn = core.open(spec)
        feeding = asyncio.get_running_loop().create_task(_feed(core, turn, segments))
        try:
            while (audio := await turn.next()) is not None:
                yield Chunk(audio.array, audio.marks)
        finally:
            core.close(turn)
            feeding.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([feeding])

    async def lost(self) -> str:
        """Wait until the child died, hung or gave up; returns why. Raises ``EngineError``."""
        return await self._running().lost()

    async def unload(self) -> None:
        """End the child, and with it all that it holds."""
        core, self._core = self._core, None
        if core is not None:
            await core.stop()

    def _running(self) -> RemoteCore:
        if self._core is None:
            raise EngineError(f"{self._pack.model_id} is not loaded")
        return self._core

    def _tell(self, event: str) -> None:
        timings = {phase: round(ms, 1) for phase, ms in self.timings.items()}
        log.info(event, model=self._pack.model_id, pid=self.pid, timings_ms=timings)


async def _feed(core: RemoteCore, turn: RemoteTurn, segments: AsyncIterator[Segment]) -> None:
    """Send the segments as they come; what goes wrong there fails the turn."""
    try:
        async for segment in segments:
            core.send(Push(turn.number, _encodable(segment)))
            await core.drained()
        core.send(End(turn.number))
    except Exception as error:
        turn.fail(error)


def _encodable(segment: Segment) -> Segment:
    """The segment without what UTF-8 cannot hold: half of a surrogate pair, from a careless cut."""
    text = segment.text.encode("utf-8", "replace").decode()
    return segment if text == segment.text else msgspec.structs.replace(segment, text=text)
