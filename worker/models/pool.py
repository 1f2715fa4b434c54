"""Which models are in memory.

A model is loaded when it is first held, stays while anyone holds it, and leaves when it has been
idle for long or when another needs its place: the least recently used goes first. One whose engine
is lost, dead or hung, leaves at once; was it to be there from the start, it is loaded again.
"""

import math
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import structlog
from anyio import TASK_STATUS_IGNORED, CancelScope, CapacityLimiter, Event
from anyio.abc import TaskGroup, TaskStatus

from voicefleet.worker.config.sections import AudioConfig, EngineConfig, ModelManagerConfig
from voicefleet.worker.engines.protocol import EngineError, EngineInfo, EngineLoadError
from voicefleet.worker.models import engine_registry
from voicefleet.worker.models.engine_registry import EngineFactory, UnknownModelError
from voicefleet.worker.models.loaded_model import Resident
from voicefleet.worker.voicepacks.voicepack import Voicepack

log = structlog.get_logger()

RELOAD_AFTER_S = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""The waits before a lost model is loaded again; the last one repeats."""

STEADY_S = 60.0
"""A model that was in memory for so long is no longer blamed for earlier losses."""


@dataclass(eq=False)
class _Tenancy:
    """A model's stay, from the wish to load it. ``done`` is set when it is loaded or has failed.

    Times are of the event loop's clock. Who waits for the load counts as a holder too.
    """

    pack: Voicepack
    done: Event = field(default_factory=Event)
    resident: Resident | None = None
    error: EngineLoadError | None = None
    holders: int = 0
    loaded_at: float = math.inf
    idle_since: float = math.inf
    attending: CancelScope = field(default_factory=CancelScope)

    @property
    def idle(self) -> bool:
        return self.resident is not None and self.holders == 0


class Residency:
    """Loads models on demand and unloads them when their time has come. ``run`` owns the work.

    Args:
        config: The ``model_manager`` section.
        engines: The ``engine`` section.
        audio: The ``audio`` section: how loud voices shall be.
        packs: The voicepacks there are, by model id.
        models: Ids of the models that are served; nothing else is ever loaded.
        build: Makes the engine of a pack.

    Raises:
        UnknownModelError: A served, default or preloaded model has no voicepack or is not served.
        ValueError: More models are to be preloaded than may be in memory.
    """

    def __init__(
        self,
        config: ModelManagerConfig,
        engines: EngineConfig,
        audio: AudioConfig,
        packs: Mapping[str, Voicepack],
        models: Sequence[str],
        *,
        build: EngineFactory = engine_registry.build,
    ) -> None:
        self._config = config
        self._engines = engines
        self._audio = audio
        self._build = build
        for model_id in models:
            _require(model_id, packs, "the voicepacks are")
        self._served = {model_id: packs[model_id] for model_id in models}
        default = (config.default_model_id,) if config.default_model_id else ()
        self._preload = tuple(dict.fromkeys((*default, *config.preload_model_ids)))
        for model_id in self._preload:
            _require(model_id, self._served, "the served models are")
        if len(self._preload) > config.resident_cap:
            raise ValueError(
                f"{len(self._preload)} models are to be preloaded, but resident_cap is "
                f"{config.resident_cap}"
            )
        self._tenancies: dict[str, _Tenancy] = {}
        self._leaving: dict[str, Event] = {}
        self._losses = Counter[str]()
        self._reloading: set[str] = set()
        self._faults: dict[str, str] = {}
        self._places_taken = 0
        self._loads = CapacityLimiter(config.max_parallel_loads)
        self._changed = Event()
        self._group: TaskGroup | None = None

    @property
    def served(self) -> Mapping[str, Voicepack]:
        """The models that can be held, in memory or not."""
        return self._served

    @property
    def default_model_id(self) -> str:
        """The configured default, else the first model served. Raises ``UnknownModelError``."""
        for model_id in (self._config.default_model_id, *self._served):
            if model_id:
                return model_id
        raise UnknownModelError("no model is served")

    @property
    def resident(self) -> tuple[Resident, ...]:
        """The models in memory now."""
        return tuple(t.resident for t in self._tenancies.values() if t.resident is not None)

    def info(self, model_id: str) -> EngineInfo | None:
        """What a model can do, while it is in memory."""
        infos = (resident.info for resident in self.resident if resident.model_id == model_id)
        return next(infos, None)

    @property
    def faults(self) -> Mapping[str, str]:
        """The models that were lost and are not back: what happened, and what is done about it."""
        return self._faults

    def is_reloading(self, model_id: str) -> bool:
        """Whether a lost model is being brought back: it can serve nobody until it is."""
        return model_id in self._reloading

    async def wait_change(self) -> None:
        """Wait until a model came, left, was lost, or is held by nobody any more."""
        await self._changed.wait()

    @asynccontextmanager
    async def hold(self, model_id: str) -> AsyncGenerator[Resident]:
        """Keep a model in memory for the length of a ``with`` block; load it where needed.

        All who ask while a model loads share that load; it goes on when one of them is cancelled.

        Raises:
            UnknownModelError: The model is not served here.
            EngineLoadError: It could not be loaded. The next holder tries again.
        """
        _require(model_id, self._served, "the served models are")
        tenancy = self._tenancies.get(model_id) or self._begin(model_id)
        tenancy.holders += 1
        try:
            await tenancy.done.wait()
            if tenancy.resident is None:
                raise EngineLoadError(str(tenancy.error)) from tenancy.error
            yield tenancy.resident
        finally:
            tenancy.holders -= 1
            if tenancy.holders == 0:
                tenancy.idle_since = anyio.current_time()
                self._notify()

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Own all loading and unloading; started when what is to be preloaded is in memory.

        The default model is preloaded where one is configured. On the way out everything is
        unloaded: whoever holds models must have let go.

        Raises:
            EngineLoadError: A preloaded model could not be loaded.
        """
        failure: EngineLoadError | None = None
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                failure = await self._preloaded()
                if failure is None:
                    task_status.started()
                    await self._unload_expired()
                group.cancel_scope.cancel()
        finally:
            self._group = None
            with CancelScope(shield=True):
                for tenancy in [*self._tenancies.values()]:
                    await self._end(tenancy)
        if failure is not None:
            raise failure

    async def unload_all(self) -> None:
        """Unload every model that nobody holds, however short its stay was."""
        for tenancy in [*self._tenancies.values()]:
            if tenancy.idle:
                await self._end(tenancy)

    async def _preloaded(self) -> EngineLoadError | None:
        tenancies = [self._begin(model_id) for model_id in self._preload]
        for tenancy in tenancies:
            await tenancy.done.wait()
        return next((tenancy.error for tenancy in tenancies if tenancy.error), None)

    def _begin(self, model_id: str) -> _Tenancy:
        if self._group is None:
            raise RuntimeError("models are loaded only while Residency.run() runs")
        tenancy = self._tenancies[model_id] = _Tenancy(self._served[model_id])
        self._group.start_soon(self._load, tenancy, name=f"load {model_id}")
        return tenancy

    async def _load(self, tenancy: _Tenancy) -> None:
        model_id = tenancy.pack.model_id
        # What waits for a load that is cut short is told so.
        tenancy.error = EngineLoadError(f"{model_id}: the worker is shutting down")
        try:
            async with self._loads:
                while (leaving := self._leaving.get(model_id)) is not None:
                    await leaving.wait()  # its memory is not free yet
                await self._take_place()
                try:
                    tenancy.resident = await self._bring_in(tenancy.pack)
                except BaseException:
                    self._places_taken -= 1
                    raise
            tenancy.error = None
            tenancy.loaded_at = tenancy.idle_since = anyio.current_time()
            self._faults.pop(model_id, None)
            self._reloading.discard(model_id)
        except EngineError as error:
            tenancy.error = EngineLoadError(str(error))
        except Exception as error:
            log.exception("model_load_failed", model=model_id)
            tenancy.error = EngineLoadError(f"{model_id}: {type(error).__name__}: {error}")
        finally:
            if tenancy.resident is None:
                del self._tenancies[model_id]
            tenancy.done.set()
            self._notify()
        if tenancy.resident is not None:
            await self._attend(tenancy, tenancy.resident)

    async def _attend(self, tenancy: _Tenancy, resident: Resident) -> None:
        """Wait until the model leaves; see to it where that is because its engine was lost."""
        reason, model_id = "", resident.model_id
        with tenancy.attending:
            reason = await resident.engine.lost()
        if not reason or self._tenancies.get(model_id) is not tenancy:
            return
        # Nothing waits between here and `_end`: whoever asks next finds it gone, not lost.
        again = model_id in self._preload
        if anyio.current_time() - tenancy.loaded_at > STEADY_S:
            self._losses[model_id] = 0
        if again:
            self._reloading.add(model_id)
        remedy = "reloading" if again else "loaded again with the next request"
        self._faults[model_id] = f"{reason}; {remedy}"
        log.error("model_lost", model=model_id, reason=reason, remedy=remedy)
        await self._end(tenancy)
        if again:
            await self._reload(model_id)

    async def _reload(self, model_id: str) -> None:
        """Bring a lost model back, however often it takes."""
        while True:
            losses = self._losses[model_id]
            self._losses[model_id] += 1
            await anyio.sleep(RELOAD_AFTER_S[min(losses, len(RELOAD_AFTER_S) - 1)])
            if model_id not in self._reloading:
                return  # who had it in hand meanwhile brought it back
            tenancy = self._tenancies.get(model_id) or self._begin(model_id)
            await tenancy.done.wait()
            if tenancy.error is None:
                return
            log.error("model_reload_failed", model=model_id, error=str(tenancy.error))
            self._faults[model_id] = f"{tenancy.error}; reloading"
            self._notify()

    async def _bring_in(self, pack: Voicepack) -> Resident:
        """Load, warm up and calibrate. Leaves nothing behind when it does not succeed."""
        begun = anyio.current_time()
        engine = self._build(pack, self._engines)
        try:
            await engine.load()
            loaded = anyio.current_time()
            if self._config.warmup_enabled:
                await engine.warm_up(self._config.warmup_text)
            resident = Resident(engine, pack, self._audio)
            gain = await resident.gain(engine.info.default_voice)
        except BaseException:
            with CancelScope(shield=True):
                await engine.unload()
            raise
        log.info(
            "model_loaded",
            model=pack.model_id,
            load_ms=round(1000 * (loaded - begun)),
            warm_up_ms=round(1000 * (anyio.current_time() - loaded)),
            gain_db=round(20 * math.log10(gain), 2),
        )
        return resident

    async def _take_place(self) -> None:
        """Wait for one of the ``resident_cap`` places, freeing one where that is possible."""
        while self._places_taken >= self._config.resident_cap:
            idle = [tenancy for tenancy in self._tenancies.values() if tenancy.idle]
            settled = [tenancy for tenancy in idle if self._movable_in(tenancy) <= 0]
            if settled:
                await self._end(min(settled, key=lambda tenancy: tenancy.idle_since))
                continue
            patience = min(map(self._movable_in, idle), default=math.inf)
            with anyio.move_on_after(patience):
                await self._changed.wait()
        self._places_taken += 1

    def _movable_in(self, tenancy: _Tenancy) -> float:
        """Seconds until the model has had its minimum stay."""
        return tenancy.loaded_at + self._config.min_residency_ms / 1000 - anyio.current_time()

    async def _unload_expired(self) -> None:
        """Every so often, unload what has been idle for ``ttl_ms``. Never returns."""
        ttl = self._config.ttl_ms / 1000
        if not ttl:
            await anyio.sleep_forever()
        while True:
            await anyio.sleep(self._config.evict_check_interval_ms / 1000)
            now = anyio.current_time()
            for tenancy in [*self._tenancies.values()]:
                expired = now - tenancy.idle_since >= ttl and self._movable_in(tenancy) <= 0
                if tenancy.idle and expired:
                    await self._end(tenancy)

    async def _end(self, tenancy: _Tenancy) -> None:
        """Unload the model; its place is free only when its memory is."""
        resident = tenancy.resident
        if resident is None or self._tenancies.get(resident.model_id) is not tenancy:
            return
        del self._tenancies[resident.model_id]
        left = self._leaving[resident.model_id] = Event()
        tenancy.attending.cancel()
        self._notify()
        try:
            with CancelScope(shield=True):
                await resident.engine.unload()
            log.info("model_unloaded", model=resident.model_id)
        except Exception:
            log.exception("model_unload_failed", model=resident.model_id)
        finally:
            del self._leaving[resident.model_id]
            left.set()
            self._places_taken -= 1
            self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = Event()


def _require(model_id: str, known: Mapping[str, Voicepack], words: str) -> None:
    if model_id not in known:
        raise UnknownModelError(
            f"unknown model {model_id[:64]!r}; {words} {', '.join(known) or 'none'}"
        )
