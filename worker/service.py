"""One worker process: build its parts, run their tasks, drain."""

import gc
import itertools
import os
import socket
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import NamedTuple, cast

import anyio
import structlog

from voicefleet import __version__
from voicefleet.schemas.keys import Keys
from voicefleet.schemas.records import ModelRecord, WorkerRecord, WorkerState
from voicefleet.schemas.request import SAMPLE_RATES
from voicefleet.wire.connect import Topology, connect
from voicefleet.wire.endpoint import Endpoint, resolve
from voicefleet.wire.link import LinkClosedError
from voicefleet.wire.router import Router
from voicefleet.worker.config.sections import Config
from voicefleet.worker.context import WorkerContext
from voicefleet.worker.control.key_watch import KeyWatch
from voicefleet.worker.drain import Drain, obeying_signals
from voicefleet.worker.engines.protocol import EngineInfo
from voicefleet.worker.engines.registry import slots_of
from voicefleet.worker.heartbeat import Heartbeat
from voicefleet.worker.intake.intake import Intake
from voicefleet.worker.intake.pending_reconciler import PendingReconciler
from voicefleet.worker.loop_monitor import LoopMonitor
from voicefleet.worker.models.pool import ModelPool
from voicefleet.worker.models.slots import Slots
from voicefleet.worker.publish.publisher import Publisher
from voicefleet.worker.stats import Stats
from voicefleet.worker.store.backlog import Backlog
from voicefleet.worker.store.clock import ServerClock
from voicefleet.worker.store.queues import QueueStore
from voicefleet.worker.store.sessions import SessionStore
from voicefleet.worker.voicepacks import voicepack

log = structlog.stdlib.get_logger(__name__)

CONNECT_AGAIN_S = 1.0
"""The time between two attempts to connect at the start."""

HAND_OVER_S = 2.0
"""How long a drain waits for the jobs that were handed over."""

IDLE_RECONCILE_BEATS = 4
"""A worker without jobs reconciles once in so many heartbeats."""

HAND_OVER_GAP_S = 0.05
"""The time between two turns that are handed over when the time is up. A take-over has to make the
turn's audio again; of many at once, the last would not be ready before its lead is played."""


def worker_name(config: Config) -> str:
    """The configured name, or one made of process and host."""
    return config.worker.name or f"{os.getpid()}@{socket.gethostname()}"


class Service:
    """A worker of the fleet, from its first heartbeat to its last. ``intake`` has its jobs.

    Args:
        config: The whole configuration.
        topology: Open for as long as the service runs.
        drain: The drain that ends it; by default one that ``drain`` alone starts.

    Raises:
        VoicepackError, UnknownModelError: A served model has no usable voicepack.
    """

    def __init__(self, config: Config, topology: Topology, drain: Drain | None = None) -> None:
        self._config = config
        self._drain = drain or Drain(config.worker.drain_timeout_s)
        self._topology = topology
        self._state: WorkerState = "starting"
        self._started = time.time()
        name = worker_name(config)
        keys = Keys(config.redis.prefix)
        packs = voicepack.discover(voicepack.default_directory(config.model_manager.voicepacks_dir))
        served = config.worker.models
        clock = ServerClock()
        router = self._router = Router(topology)
        queues = QueueStore(router, keys, name)
        ttl_ms = int(config.worker.audio_ttl_s * 1000)
        self._context = WorkerContext(
            name=name,
            keys=keys,
            config=config.worker,
            audio=config.audio,
            clock=clock,
            loop=LoopMonitor(config.worker.dead_after_ms / 1000),
            queues=queues,
            sessions=SessionStore(router, keys, name, ttl_ms, queues),
            backlogs={model: Backlog(router, keys, model, name) for model in served},
            watch=KeyWatch(topology),
            publisher=Publisher(topology),
            pool=ModelPool(config.model_manager, config.engine, config.audio, packs, served),
            slots=Slots(
                {model: slots_of(packs[model], config.engine) for model in served},
                config.worker.slots,
            ),
            stats=Stats(),
        )
        self.intake = Intake(self._context, topology)
        self._heartbeat = Heartbeat(
            router,
            keys,
            config.worker,
            name,
            clock,
            queues,
            self._describe,
            self._models,
        )

    async def run(self) -> None:
        """Serve until drained. The drain ends in time even if the server does not answer."""
        context = self._context
        try:
            with self._drain.limit:
                async with anyio.create_task_group() as tasks:
                    with self._drain.while_idle():
                        await tasks.start(self._heartbeat.run)
                        await tasks.start(context.watch.run)
                        await tasks.start(context.publisher.run)
                        await tasks.start(context.pool.run)
                    if not self._drain.asked.is_set():
                        self._offer()
                        tasks.start_soon(context.loop.run)
                        tasks.start_soon(self._keep_slots)
                        tasks.start_soon(self._keep_sessions)
                        tasks.start_soon(self._reconcile_pending)
                        with _settled_memory():
                            await self._take_turns()
                    await self._heartbeat.depart()
                    tasks.cancel_scope.cancel()
        finally:
            self._router.close()

    async def _take_turns(self) -> None:
        """Take requests until a drain is asked for; then finish or hand over."""
        context = self._context
        async with anyio.create_task_group() as turns:
            self._state = "ready"
            with self._drain.while_idle():
                await self._heartbeat.beat()
            log.info("ready", models=list(context.pool.served), slots=context.slots.total)
            turns.start_soon(self.intake.run, turns)
            await self._drain.asked.wait()
            await self._finish_or_hand_over()

    def drain(self) -> None:
        """Take no new request, finish or hand over the turns, end. Called again: hand over now."""
        self._drain.ask()

    async def _finish_or_hand_over(self) -> None:
        self._state = "draining"
        log.info("draining", speaking=self.intake.speaking)
        self.intake.close()
        async with anyio.create_task_group() as patience:

            async def give_up(when: Callable[[], Awaitable[object]]) -> None:
                await when()
                patience.cancel_scope.cancel()

            patience.start_soon(self._heartbeat.beat)
            patience.start_soon(give_up, self._hand_over_in_turn)
            patience.start_soon(give_up, self._drain.hurried.wait)
            await self.intake.emptied()
            patience.cancel_scope.cancel()
        self.intake.hand_over()
        with anyio.move_on_after(HAND_OVER_S):
            await self.intake.emptied()

    async def _hand_over_in_turn(self) -> None:
        """Hand over one turn after another, so that none is left when the time is up."""
        jobs, timeout_s = self.intake.jobs, self._drain.timeout_s
        gap_s = min(HAND_OVER_GAP_S, timeout_s / max(1, len(jobs)))
        await anyio.sleep(timeout_s - gap_s * len(jobs))
        for job in jobs & self.intake.jobs:
            job.hand_over()
            await anyio.sleep(gap_s)

    async def _keep_sessions(self) -> None:
        """Renew the TTL of the keys of sessions that have jobs: not all of them write."""
        while True:
            await anyio.sleep(self._config.worker.audio_ttl_s / 4)
            for keys in self.intake.kept_keys:
                await self._context.sessions.touch(keys)

    async def _reconcile_pending(self) -> None:
        """Compare jobs with the pending lists: each heartbeat, on an idle worker less often."""
        reconciler = PendingReconciler(self._context.queues, self._context.pool.served)
        for beat in itertools.count():
            await anyio.sleep(self._config.worker.heartbeat_ms / 1000)
            is_busy = reconciler.is_in_doubt or self.intake.jobs
            if is_busy or beat % IDLE_RECONCILE_BEATS == 0:
                await reconciler.reconcile(self.intake.jobs)

    async def _keep_slots(self) -> None:
        """Adjust the slots when the model pool changes, and each heartbeat: engines may too."""
        while True:
            with anyio.move_on_after(self._config.worker.heartbeat_ms / 1000):
                await self._context.pool.wait_change()
            self._offer()

    def _offer(self) -> None:
        """Offer each model's slots: as its engine says, or none while it is being reloaded."""
        pool, slots = self._context.pool, self._context.slots
        for model, pack in pool.served.items():
            info = pool.info(model)
            if info is not None:
                slots.resize(model, info.slots)
            elif pool.is_reloading(model):
                slots.resize(model, 0)
            else:
                slots.resize(model, slots_of(pack, self._config.engine))

    def _describe(self) -> WorkerRecord:
        context = self._context
        infos = [model.info for model in context.pool.loaded_models]
        memories = [info.memory for info in infos if info.memory]
        gpus = _memory(infos)
        faults = [f"{model}: {fault}" for model, fault in context.pool.faults.items()]
        return WorkerRecord(
            state=self._state,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=__version__,
            device=",".join(sorted({info.device for info in infos})) or "none",
            models=tuple(context.pool.served),
            slots_total=context.slots.total,
            slots_free=max(context.slots.free, 0) if self._state == "ready" else 0,
            sessions=self.intake.speaking,
            started_ms=int(self._started * 1000),
            first_audio_p50_ms=context.stats.first_audio_ms(0.5),
            first_audio_p95_ms=context.stats.first_audio_ms(0.95),
            rtf=context.stats.rtf,
            vram_used_mb=gpus and round(gpus.used_mb),
            vram_total_mb=gpus and round(gpus.total_mb),
            session_mb=max((memory.per_session_mb for memory in memories), default=None),
            voice_mb=max((memory.per_voice_mb for memory in memories), default=None),
            faults=" | ".join(faults) or None,
        )

    def _models(self) -> dict[str, ModelRecord]:
        pool = self._context.pool
        described: dict[str, ModelRecord] = {}
        for model, pack in pool.served.items():
            info = pool.info(model)
            described[model] = ModelRecord(
                family=pack.family,
                version=pack.version,
                languages=info.languages if info else pack.languages,
                voices=info.voices if info else pack.voices,
                default_voice=info.default_voice if info else pack.default_voice or "",
                modes=info.modes if info else pack.modes,
                capabilities=info.capabilities if info else pack.capabilities,
                native_rate=info.native_rate if info else pack.native_rate,
                sample_rates=SAMPLE_RATES,
                synthetic=info.synthetic if info else pack.synthetic,
            )
        return described


class _Memory(NamedTuple):
    used_mb: float
    total_mb: float


def _memory(infos: Sequence[EngineInfo]) -> _Memory | None:
    """The memory of all GPUs in use, in MB; ``None`` where no engine is on a GPU."""
    on_gpus = [(info.device, info.memory) for info in infos if info.memory]
    on_gpus = [(device, memory) for device, memory in on_gpus if device != "cpu"]
    if not on_gpus:
        return None
    # Engines may share a device: its size counts once.
    totals = {device: memory.total_mb for device, memory in on_gpus}
    used = sum(memory.used_mb for _, memory in on_gpus)
    return _Memory(used, sum(totals.values()))


async def run(config: Config) -> int:
    """Run a worker until SIGTERM or SIGINT has drained it. Returns the exit status.

    Waits while the server cannot be reached: worker and server may start in any order.

    Raises:
        BadUrlError, VoicepackError, UnknownModelError, EngineLoadError, NameTakenError: The
            worker cannot start.
    """
    endpoint = resolve(config.redis)
    drain = Drain(config.worker.drain_timeout_s)
    try:
        with obeying_signals(drain):
            async with AsyncExitStack() as stack:
                topology: Topology | None = None
                with drain.while_idle():
                    topology = await _connected(endpoint, stack)
                if topology is not None:
                    await Service(config, topology, drain).run()
    except BaseExceptionGroup as group:
        raise _first(group) from group
    return 0


@contextmanager
def _settled_memory() -> Generator[None]:
    """Exclude what is loaded by now from garbage collection, for the time of the block.

    Measured with 200 sessions: a full collection stopped the event loop for 50 to 100 ms, five
    times in ten seconds, and frames came late.
    """
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


async def _connected(endpoint: Endpoint, stack: AsyncExitStack) -> Topology:
    while True:
        try:
            return await stack.enter_async_context(connect(endpoint))
        except LinkClosedError as error:
            log.warning("redis_away", error=str(error), retry_s=CONNECT_AGAIN_S)
        await anyio.sleep(CONNECT_AGAIN_S)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error: each level of task groups wraps it once."""
    error: BaseException = group.exceptions[0]
    if not isinstance(error, BaseExceptionGroup):
        return error
    return _first(cast("BaseExceptionGroup[BaseException]", error))
