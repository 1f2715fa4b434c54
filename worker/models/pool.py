"""Which models are in memory.

A model is loaded when it is first held and stays while anyone holds it. It is unloaded when it has
been idle for ``ttl_ms``, or when another model needs the room: the least recently used goes first.
A model whose engine is lost (its process died or hung) is unloaded at once. If it is one of those
loaded at start, it is loaded again.
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

from voicefleet.worker.config.sections import AudioConfig, ModelManagerConfig
from voicefleet.worker.engines import registry
from voicefleet.worker.engines.protocol import EngineError, EngineInfo, EngineLoadError
from voicefleet.worker.engines.registry import EngineConfig, EngineFactory, UnknownModelError
from voicefleet.worker.models.loaded_model import LoadedModel
from voicefleet.worker.voicepacks.voicepack import Voicepack

log = structlog.get_logger()

RELOAD_AFTER_S = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""The waits before a lost model is loaded again; the last one repeats."""

STEADY_S = 60.0
"""After so many seconds in memory a model's earlier losses no longer delay its reload."""


@dataclass(eq=False)
class _ModelEntry:
    """A model that is loading or loaded. ``done`` is set when its load succeeded or failed.

    Times are in seconds of the event loop's clock. A task that waits for the load is a holder too.
    """

    pack: Voicepack
    done: Event = field(default_factory=Event)
    loaded_model: LoadedModel | None = None
    error: EngineLoadError | None = None
    holders: int = 0
    loaded_at: float = math.inf
    idle_since: float = math.inf
    watching: CancelScope = field(default_factory=CancelScope)

    @property
    def idle(self) -> bool:
        return self.loaded_model is not None and self.holders == 0


class ModelPool:
    """Loads models on demand and unloads idle ones. ``run`` owns the work.

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
        build: EngineFactory = registry.build,
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
        self._entries: dict[str, _ModelEntry] = {}
        self._leaving: dict[str, Event] = {}
        self._losses = Counter[str]()
        self._reloading: set[str] = set()
        self._faults: dict[str, str] = {}
        self._in_memory = 0
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
    def loaded_models(self) -> tuple[LoadedModel, ...]:
        """The models in memory now."""
        return tuple(e.loaded_model for e in self._entries.values() if e.loaded_model is not None)

    def info(self, model_id: str) -> EngineInfo | None:
        """What a model can do, while it is in memory."""
        entry = self._entries.get(model_id)
        return entry.loaded_model.info if entry and entry.loaded_model else None

    @property
    def faults(self) -> Mapping[str, str]:
        """The lost models that are not loaded again yet: why each was lost, and what is done."""
        return self._faults

    def is_reloading(self, model_id: str) -> bool:
        """Whether a lost model is being loaded again: until then it can serve nobody."""
        return model_id in self._reloading

    async def wait_change(self) -> None:
        """Wait until a model is loaded, unloaded, lost, or no longer held by anyone."""
        await self._changed.wait()

    @asynccontextmanager
    async def hold(self, model_id: str) -> AsyncGenerator[LoadedModel]:
        """Keep a model in memory for the length of a ``with`` block; load it where needed.

        All who ask while a model loads share that load; it goes on when one of them is cancelled.

        Raises:
            UnknownModelError: The model is not served here.
            EngineLoadError: It could not be loaded. The next holder tries again.
        """
        _require(model_id, self._served, "the served models are")
        entry = self._entries.get(model_id) or self._begin(model_id)
        entry.holders += 1
        try:
            await entry.done.wait()
            if entry.loaded_model is None:
                raise EngineLoadError(str(entry.error)) from entry.error
            yield entry.loaded_model
        finally:
            entry.holders -= 1
            if entry.holders == 0:
                entry.idle_since = anyio.current_time()
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
                for entry in [*self._entries.values()]:
                    await self._end(entry)
        if failure is not None:
            raise failure

    async def unload_all(self) -> None:
        """Unload every model that nobody holds, however short its stay was."""
        for entry in [*self._entries.values()]:
            if entry.idle:
                await self._end(entry)

    async def _preloaded(self) -> EngineLoadError | None:
        entries = [self._begin(model_id) for model_id in self._preload]
        for entry in entries:
            await entry.done.wait()
        return next((entry.error for entry in entries if entry.error), None)

    def _begin(self, model_id: str) -> _ModelEntry:
        if self._group is None:
            raise RuntimeError("models are loaded only while ModelPool.run() runs")
        entry = self._entries[model_id] = _ModelEntry(self._served[model_id])
        self._group.start_soon(self._load, entry, name=f"load {model_id}")
        return entry

    async def _load(self, entry: _ModelEntry) -> None:
        model_id = entry.pack.model_id
        # What those who wait for the load are told if it is cancelled.
        entry.error = EngineLoadError(f"{model_id}: the worker is shutting down")
        try:
            async with self._loads:
                while (leaving := self._leaving.get(model_id)) is not None:
                    await leaving.wait()  # its memory is not free yet
                await self._make_room()
                try:
                    entry.loaded_model = await self._load_engine(entry.pack)
                except BaseException:
                    self._in_memory -= 1
                    raise
            entry.error = None
            entry.loaded_at = entry.idle_since = anyio.current_time()
            self._faults.pop(model_id, None)
            self._reloading.discard(model_id)
        except EngineError as error:
            entry.error = EngineLoadError(str(error))
        except Exception as error:
            log.exception("model_load_failed", model=model_id)
            entry.error = EngineLoadError(f"{model_id}: {type(error).__name__}: {error}")
        finally:
            if entry.loaded_model is None:
                del self._entries[model_id]
            entry.done.set()
            self._notify()
        if entry.loaded_model is not None:
            await self._watch(entry, entry.loaded_model)

    async def _watch(self, entry: _ModelEntry, loaded_model: LoadedModel) -> None:
        """Wait until the model is unloaded; unload it, and reload it, if its engine is lost."""
        reason, model_id = "", loaded_model.model_id
        with entry.watching:
            reason = await loaded_model.engine.lost()
        if not reason or self._entries.get(model_id) is not entry:
            return
        # No await between here and `_end`: whoever asks next finds no entry and loads it anew.
        again = model_id in self._preload
        if anyio.current_time() - entry.loaded_at > STEADY_S:
            self._losses[model_id] = 0
        if again:
            self._reloading.add(model_id)
        remedy = "reloading" if again else "loaded again with the next request"
        self._faults[model_id] = f"{reason}; {remedy}"
        log.error("model_lost", model=model_id, reason=reason, remedy=remedy)
        await self._end(entry)
        if again:
            await self._reload(model_id)

    async def _reload(self, model_id: str) -> None:
        """Load a lost model again, until a load succeeds."""
        while True:
            losses = self._losses[model_id]
            self._losses[model_id] += 1
            await anyio.sleep(RELOAD_AFTER_S[min(losses, len(RELOAD_AFTER_S) - 1)])
            if model_id not in self._reloading:
                return  # a holder has loaded it meanwhile
            entry = self._entries.get(model_id) or self._begin(model_id)
            await entry.done.wait()
            if entry.error is None:
                return
            log.error("model_reload_failed", model=model_id, error=str(entry.error))
            self._faults[model_id] = f"{entry.error}; reloading"
            self._notify()

    async def _load_engine(self, pack: Voicepack) -> LoadedModel:
        """Load, warm up and calibrate. Leaves nothing behind when it does not succeed."""
        begun = anyio.current_time()
        engine = self._build(pack, self._engines)
        try:
            await engine.load()
            loaded = anyio.current_time()
            if self._config.warmup_enabled:
                await engine.warm_up(self._config.warmup_text)
            loaded_model = LoadedModel(engine, pack, self._audio)
            gain = await loaded_model.gain(engine.info.default_voice)
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
        return loaded_model

    async def _make_room(self) -> None:
        """Wait for room among the ``resident_cap`` models; unload an idle one if possible."""
        while self._in_memory >= self._config.resident_cap:
            idle = [entry for entry in self._entries.values() if entry.idle]
            settled = [entry for entry in idle if self._evictable_in(entry) <= 0]
            if settled:
                await self._end(min(settled, key=lambda entry: entry.idle_since))
                continue
            patience = min(map(self._evictable_in, idle), default=math.inf)
            with anyio.move_on_after(patience):
                await self._changed.wait()
        self._in_memory += 1

    def _evictable_in(self, entry: _ModelEntry) -> float:
        """Seconds until the model has been in memory for ``min_residency_ms``."""
        return entry.loaded_at + self._config.min_residency_ms / 1000 - anyio.current_time()

    async def _unload_expired(self) -> None:
        """Every so often, unload what has been idle for ``ttl_ms``. Never returns."""
        ttl = self._config.ttl_ms / 1000
        if not ttl:
            await anyio.sleep_forever()
        while True:
            await anyio.sleep(self._config.evict_check_interval_ms / 1000)
            now = anyio.current_time()
            for entry in [*self._entries.values()]:
                expired = now - entry.idle_since >= ttl and self._evictable_in(entry) <= 0
                if entry.idle and expired:
                    await self._end(entry)

    async def _end(self, entry: _ModelEntry) -> None:
        """Unload the model. Its room is free only when its memory is."""
        loaded_model = entry.loaded_model
        if loaded_model is None or self._entries.get(loaded_model.model_id) is not entry:
            return
        del self._entries[loaded_model.model_id]
        left = self._leaving[loaded_model.model_id] = Event()
        entry.watching.cancel()
        self._notify()
        try:
            with CancelScope(shield=True):
                await loaded_model.engine.unload()
            log.info("model_unloaded", model=loaded_model.model_id)
        except Exception:
            log.exception("model_unload_failed", model=loaded_model.model_id)
        finally:
            del self._leaving[loaded_model.model_id]
            left.set()
            self._in_memory -= 1
            self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = Event()


def _require(model_id: str, known: Mapping[str, Voicepack], words: str) -> None:
    if model_id not in known:
        raise UnknownModelError(
            f"unknown model {model_id[:64]!r}; {words} {', '.join(known) or 'none'}"
        )
