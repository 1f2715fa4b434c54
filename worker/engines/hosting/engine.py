"""An engine that runs in a child process: the worker's side of any core."""

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
    """Implements ``engines.protocol.Engine`` with a core in a child process.

    Args:
        pack: The model.
        core: The core to run in the child: a family, or ``module:attribute`` (``hosting.cores``).
        config: The core's section of the configuration.
        synthesis_timeout_s: A loaded child that sends nothing for this long counts as hung. It is
            killed; its turns fail and can be retried.
        load_timeout_s: The time limit of the load, and of the warm-up.
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
        """The model's capabilities now. Raises ``EngineError`` while it is not loaded."""
        info = self._running().info
        assert info is not None
        return info

    @property
    def timings(self) -> Mapping[str, float]:
        """Milliseconds of each phase of load and warm-up. Raises ``EngineError``."""
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
        self._log("engine_loaded")

    async def warm_up(self, text: str) -> None:
        """Let the child do everything that is slow the first time. Raises ``EngineLoadError``."""
        await self._running().warm_up(text, self._load_timeout_s)
        self._log("engine_warm")

    async def speak(
        self, spec: TurnSpec, segments: AsyncIterator[Segment]
    ) -> AsyncGenerator[Chunk]:
        """Speak the segments. See ``Engine.speak``.

        The core limits how far the child runs ahead of the consumer.
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
        """Wait until the child has died, hung or given up; return why. Raises ``EngineError``."""
        return await self._running().lost()

    async def unload(self) -> None:
        """End the child, which frees everything that it holds."""
        core, self._core = self._core, None
        if core is not None:
            await core.stop()

    def _running(self) -> RemoteCore:
        if self._core is None:
            raise EngineError(f"{self._pack.model_id} is not loaded")
        return self._core

    def _log(self, event: str) -> None:
        timings = {phase: round(ms, 1) for phase, ms in self.timings.items()}
        log.info(event, model=self._pack.model_id, pid=self.pid, timings_ms=timings)


async def _feed(core: RemoteCore, turn: RemoteTurn, segments: AsyncIterator[Segment]) -> None:
    """Send the segments as they come; an exception from their source fails the turn."""
    try:
        async for segment in segments:
            core.send(Push(turn.number, _encodable(segment)))
            await core.drained()
        core.send(End(turn.number))
    except Exception as error:
        turn.fail(error)


def _encodable(segment: Segment) -> Segment:
    """Replace what UTF-8 cannot encode: half of a surrogate pair, where text was cut inside one."""
    text = segment.text.encode("utf-8", "replace").decode()
    return segment if text == segment.text else msgspec.structs.replace(segment, text=text)
