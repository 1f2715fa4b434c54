"""The model manager: who is loaded, who leaves, and who waits."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import numpy as np
import pytest
from msgspec.structs import replace

from tests.harness import ROOT
from voicefleet.worker.config.sections import AudioConfig, ModelManagerConfig
from voicefleet.worker.engines import registry
from voicefleet.worker.engines.protocol import (
    CannotSpeakError,
    Chunk,
    Engine,
    EngineInfo,
    EngineLoadError,
    Mark,
    Segment,
    TurnSpec,
)
from voicefleet.worker.engines.registry import EngineConfig, UnknownModelError
from voicefleet.worker.models.pool import ModelPool
from voicefleet.worker.voicepacks import voicepack
from voicefleet.worker.voicepacks.voicepack import Voicepack

pytestmark = pytest.mark.anyio

TONE = voicepack.read(ROOT / "voicepacks" / "tone" / "test")
MODELS = ("tone-1", "tone-2", "tone-3", "tone-4")
PACKS = {model_id: replace(TONE, model_id=model_id) for model_id in MODELS}


@dataclass
class Fleet:
    """Makes engines that write down what happens to them and do as the test says."""

    events: list[str] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)
    gates: dict[str, anyio.Event] = field(default_factory=dict)
    loading: int = 0
    most_loading: int = 0
    loaded: set[str] = field(default_factory=set)
    most_loaded: int = 0
    engines: list["Recorder"] = field(default_factory=list)
    unload_gate: anyio.Event | None = None

    def build(self, pack: Voicepack, _: EngineConfig) -> Engine:
        return Recorder(pack.model_id, self)

    def count(self, event: str) -> int:
        return self.events.count(event)


class Recorder:
    """An engine of two voices, the second twice as loud as the first."""

    def __init__(self, model_id: str, fleet: Fleet) -> None:
        self.model_id = model_id
        self.fleet = fleet
        self.gone = anyio.Event()
        fleet.engines.append(self)

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            native_rate=16000, slots=2, voices=("a", "b"), default_voice="a", languages=("en",)
        )

    async def load(self) -> None:
        fleet = self.fleet
        fleet.events.append(f"load {self.model_id}")
        fleet.loading += 1
        fleet.most_loading = max(fleet.most_loading, fleet.loading)
        try:
            await anyio.lowlevel.checkpoint()
            if gate := fleet.gates.get(self.model_id):
                await gate.wait()
            if self.model_id in fleet.failing:
                raise EngineLoadError(f"{self.model_id} has no hands")
        finally:
            fleet.loading -= 1
        fleet.loaded.add(self.model_id)
        fleet.most_loaded = max(fleet.most_loaded, len(fleet.loaded))

    async def warm_up(self, text: str) -> None:
        self.fleet.events.append(f"warm {self.model_id} {text}")

    async def speak(
        self, spec: TurnSpec, segments: AsyncIterator[Segment]
    ) -> AsyncGenerator[Chunk]:
        self.fleet.events.append(f"speak {self.model_id} {spec.voice}")
        async for segment in segments:
            await anyio.lowlevel.checkpoint()
            tone = np.sin(np.arange(16000, dtype=np.float32) / 5) * (
                0.1 if spec.voice == "a" else 0.2
            )
            yield Chunk(tone.astype(np.float32), (Mark(0, segment),))

    async def lost(self) -> str:
        await self.gone.wait()
        return "out of breath"

    async def unload(self) -> None:
        await anyio.lowlevel.checkpoint()
        if self.fleet.unload_gate is not None:
            await self.fleet.unload_gate.wait()
        self.fleet.loaded.discard(self.model_id)
        self.fleet.events.append(f"unload {self.model_id}")


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@asynccontextmanager
async def running(
    fleet: Fleet, *, normalise: bool = False, **settings: object
) -> AsyncGenerator[ModelPool]:
    settings = {"min_residency_ms": 0, "warmup_enabled": False, **settings}
    pool = ModelPool(
        ModelManagerConfig(**settings),  # pyright: ignore[reportArgumentType]
        EngineConfig(),
        AudioConfig(normalise=normalise),
        PACKS,
        MODELS,
        build=fleet.build,
    )
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            await group.start(lambda *, task_status: pool.run(task_status=task_status))
            yield pool
            group.cancel_scope.cancel()


async def touch(pool: ModelPool, *models: str) -> None:
    for model in models:
        async with pool.hold(model):
            pass


def names(pool: ModelPool) -> set[str]:
    return {loaded_model.model_id for loaded_model in pool.loaded_models}


async def test_holders_share_one_load(fleet: Fleet) -> None:
    async with running(fleet) as pool, anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(touch, pool, "tone-1")
    assert fleet.events == ["load tone-1", "unload tone-1"]


async def test_the_longest_idle_leaves_first(fleet: Fleet) -> None:
    async with running(fleet, resident_cap=2) as pool:
        await touch(pool, "tone-1", "tone-2", "tone-1", "tone-3")
        assert names(pool) == {"tone-1", "tone-3"}
    assert fleet.most_loaded == 2


async def test_a_held_model_is_never_unloaded(fleet: Fleet) -> None:
    async with running(fleet, resident_cap=1) as pool:
        async with anyio.create_task_group() as group, pool.hold("tone-1"):
            group.start_soon(touch, pool, "tone-2")
            await anyio.wait_all_tasks_blocked()
            assert fleet.events == ["load tone-1"]
            await pool.unload_all()
            assert names(pool) == {"tone-1"}
        assert fleet.events == ["load tone-1", "unload tone-1", "load tone-2"]
    assert fleet.most_loaded == 1


async def test_under_pressure_the_cap_holds(fleet: Fleet) -> None:
    async with (
        running(fleet, resident_cap=2, max_parallel_loads=4) as pool,
        anyio.create_task_group() as group,
    ):
        for start in range(8):
            order = [MODELS[(start + step * (1 + start % 3)) % 4] for step in range(12)]
            group.start_soon(touch, pool, *order)
    assert fleet.most_loaded == 2
    assert not fleet.loaded


async def test_loads_side_by_side_are_limited(fleet: Fleet) -> None:
    async with (
        running(fleet, max_parallel_loads=2) as pool,
        anyio.create_task_group() as group,
    ):
        for model in MODELS:
            group.start_soon(touch, pool, model)
    assert fleet.most_loading == 2


async def test_a_failed_load_reaches_all_and_can_be_tried_again(fleet: Fleet) -> None:
    fleet.failing.add("tone-1")
    failures: list[EngineLoadError] = []

    async def attempt(pool: ModelPool) -> None:
        try:
            await touch(pool, "tone-1")
        except EngineLoadError as error:
            failures.append(error)

    async with running(fleet, resident_cap=1) as pool:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(attempt, pool)
        assert [str(error) for error in failures] == ["tone-1 has no hands"] * 3
        assert fleet.count("load tone-1") == fleet.count("unload tone-1") == 1
        fleet.failing.clear()
        await touch(pool, "tone-1")
        assert names(pool) == {"tone-1"}


async def test_a_cancelled_waiter_does_not_end_the_load(fleet: Fleet) -> None:
    gate = fleet.gates["tone-1"] = anyio.Event()
    async with running(fleet) as pool, anyio.create_task_group() as group:
        with anyio.CancelScope() as impatient:
            async with anyio.create_task_group() as first:
                first.start_soon(touch, pool, "tone-1")
                await anyio.wait_all_tasks_blocked()
                group.start_soon(touch, pool, "tone-1")
                await anyio.wait_all_tasks_blocked()
                impatient.cancel()
        gate.set()
    assert fleet.events == ["load tone-1", "unload tone-1"]


async def test_idle_models_expire(fleet: Fleet) -> None:
    async with running(fleet, ttl_ms=20, evict_check_interval_ms=10) as pool:
        async with pool.hold("tone-1"):
            await touch(pool, "tone-2")
            while "tone-2" in names(pool):
                await anyio.sleep(0.01)
            await anyio.sleep(0.1)
            assert names(pool) == {"tone-1"}
        while pool.loaded_models:
            await anyio.sleep(0.01)


async def test_no_model_leaves_before_its_minimum_stay(fleet: Fleet) -> None:
    async with running(
        fleet, resident_cap=1, ttl_ms=1, min_residency_ms=300, evict_check_interval_ms=10
    ) as pool:
        await touch(pool, "tone-1")
        begun = anyio.current_time()
        await touch(pool, "tone-2")
        assert anyio.current_time() - begun > 0.25
        assert fleet.events[:3] == ["load tone-1", "unload tone-1", "load tone-2"]


async def test_preloaded_models_are_there_at_the_start(fleet: Fleet) -> None:
    async with running(
        fleet,
        default_model_id="tone-3",
        preload_model_ids=("tone-1", "tone-3"),
        warmup_enabled=True,
        warmup_text="Hm.",
    ) as pool:
        assert names(pool) == {"tone-1", "tone-3"}
        assert pool.default_model_id == "tone-3"
        assert {"warm tone-1 Hm.", "warm tone-3 Hm."} <= set(fleet.events)


async def test_a_failed_preload_fails_the_start(fleet: Fleet) -> None:
    fleet.failing.add("tone-2")
    with pytest.raises(BaseException) as caught:
        async with running(fleet, preload_model_ids=("tone-1", "tone-2")):
            pytest.fail("started without its models")
    assert caught.group_contains(EngineLoadError, match="no hands") or isinstance(
        caught.value, EngineLoadError
    )
    assert not fleet.loaded


async def test_the_end_of_a_load_that_is_cut_short(fleet: Fleet) -> None:
    fleet.gates["tone-1"] = anyio.Event()
    async with anyio.create_task_group() as outer, running(fleet) as pool:

        async def wait() -> None:
            with pytest.raises(EngineLoadError, match="shutting down"):
                await touch(pool, "tone-1")

        outer.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
    assert fleet.events == ["load tone-1", "unload tone-1"]


async def test_a_lost_model_that_was_preloaded_is_loaded_again_at_once(fleet: Fleet) -> None:
    async with running(fleet, preload_model_ids=("tone-1",)) as pool:
        async with pool.hold("tone-1") as loaded_model:
            fleet.engines[0].gone.set()
            await anyio.wait_all_tasks_blocked()
            assert fleet.events == ["load tone-1", "unload tone-1", "load tone-1"]
            async with pool.hold("tone-1") as another:
                assert another is not loaded_model
        assert not pool.faults
        assert not pool.is_reloading("tone-1")


async def test_while_a_lost_model_is_reloaded_that_is_known(fleet: Fleet) -> None:
    async with running(fleet, preload_model_ids=("tone-1",)) as pool:
        gate = fleet.gates["tone-1"] = anyio.Event()
        fleet.engines[0].gone.set()
        await anyio.wait_all_tasks_blocked()
        assert pool.faults == {"tone-1": "out of breath; reloading"}
        assert pool.is_reloading("tone-1")
        assert not pool.loaded_models
        gate.set()
        await touch(pool, "tone-1")
        assert not pool.faults
        assert not pool.is_reloading("tone-1")
    assert fleet.count("load tone-1") == 2


async def test_a_reload_that_fails_is_tried_again(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voicefleet.worker.models.pool.RELOAD_AFTER_S", (0.0, 0.01))
    async with running(fleet, preload_model_ids=("tone-1",)) as pool:
        fleet.failing.add("tone-1")
        fleet.engines[0].gone.set()
        while fleet.count("load tone-1") < 4:
            await anyio.sleep(0.01)
        assert pool.faults == {"tone-1": "tone-1 has no hands; reloading"}
        assert pool.is_reloading("tone-1")
        fleet.failing.clear()
        while pool.is_reloading("tone-1"):
            await anyio.sleep(0.01)
        assert names(pool) == {"tone-1"}
        assert not pool.faults


async def test_who_is_lost_again_and_again_waits_longer_each_time(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = (0.0, 0.02, 0.04, 1000.0)
    monkeypatch.setattr("voicefleet.worker.models.pool.RELOAD_AFTER_S", waits)
    async with running(fleet, preload_model_ids=("tone-1",)) as pool:
        for losses in range(1, 5):
            while fleet.count("load tone-1") < losses or not pool.loaded_models:
                await anyio.sleep(0.005)
            fleet.engines[-1].gone.set()
        await anyio.sleep(0.1)
        assert pool.is_reloading("tone-1")
        assert fleet.count("load tone-1") == 4
        await touch(pool, "tone-1")  # who needs it need not wait
        assert not pool.is_reloading("tone-1")


async def test_a_lost_model_that_was_not_preloaded_comes_back_when_it_is_held(
    fleet: Fleet,
) -> None:
    async with running(fleet, resident_cap=1) as pool:
        await touch(pool, "tone-1")
        fleet.engines[0].gone.set()
        await anyio.wait_all_tasks_blocked()
        assert fleet.events == ["load tone-1", "unload tone-1"]
        assert pool.faults == {"tone-1": "out of breath; loaded again with the next request"}
        assert not pool.is_reloading("tone-1")
        await touch(pool, "tone-1")
        assert names(pool) == {"tone-1"}
        assert not pool.faults


async def test_a_model_that_left_in_good_order_is_not_lost(fleet: Fleet) -> None:
    async with running(fleet, resident_cap=1) as pool:
        await touch(pool, "tone-1", "tone-2")
        fleet.engines[0].gone.set()
        await anyio.wait_all_tasks_blocked()
        assert not pool.faults
        assert names(pool) == {"tone-2"}


async def test_a_model_is_not_loaded_while_it_is_still_being_unloaded(fleet: Fleet) -> None:
    async with running(fleet) as pool, anyio.create_task_group() as group:
        await touch(pool, "tone-1")
        gate = fleet.unload_gate = anyio.Event()
        fleet.engines[0].gone.set()
        group.start_soon(touch, pool, "tone-1")
        await anyio.wait_all_tasks_blocked()
        assert fleet.events == ["load tone-1"]
        gate.set()
    assert fleet.events[:3] == ["load tone-1", "unload tone-1", "load tone-1"]


async def test_each_voice_is_measured_once(fleet: Fleet) -> None:
    async with running(fleet, normalise=True) as pool, pool.hold("tone-1") as loaded_model:
        assert fleet.count("speak tone-1 a") == 1
        gains: list[float] = []

        async def ask() -> None:
            gains.append(await loaded_model.gain("b"))

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(ask)
        assert fleet.count("speak tone-1 b") == 1
        assert await loaded_model.gain("a") == pytest.approx(2 * gains[0], rel=0.01)
        with pytest.raises(CannotSpeakError):
            await loaded_model.gain("c")


async def test_gain_is_one_where_loudness_is_left_alone(fleet: Fleet) -> None:
    async with running(fleet) as pool, pool.hold("tone-1") as loaded_model:
        assert await loaded_model.gain("a") == 1.0
    assert not any(event.startswith("speak") for event in fleet.events)


async def test_unknown_models_are_errors(fleet: Fleet) -> None:
    async with running(fleet) as pool:
        with pytest.raises(UnknownModelError, match="'tone-9'; the served models are tone-1, "):
            await touch(pool, "tone-9")
    sections = (EngineConfig(), AudioConfig(), PACKS)
    with pytest.raises(UnknownModelError, match="piper-x"):
        ModelPool(ModelManagerConfig(), *sections, ["piper-x"])
    with pytest.raises(UnknownModelError, match="tone-2"):
        ModelPool(ModelManagerConfig(default_model_id="tone-2"), *sections, ["tone-1"])
    with pytest.raises(ValueError, match="resident_cap"):
        ModelPool(
            ModelManagerConfig(preload_model_ids=("tone-1", "tone-2"), resident_cap=1),
            *sections,
            MODELS,
        )


async def test_a_family_without_an_engine_is_refused() -> None:
    pack = replace(TONE, family="viola", model_id="viola-x")
    with pytest.raises(UnknownModelError, match=r"cosyvoice2-\*, piper-\*, tone-\*"):
        registry.build(pack, EngineConfig())
    pool = ModelPool(
        ModelManagerConfig(), EngineConfig(), AudioConfig(), {"viola-x": pack}, ["viola-x"]
    )
    async with anyio.create_task_group() as group:
        await group.start(lambda *, task_status: pool.run(task_status=task_status))
        with pytest.raises(EngineLoadError, match="no engine speaks"):
            await touch(pool, "viola-x")
        group.cancel_scope.cancel()


async def test_real_engines_speak_while_others_come_and_go() -> None:
    pool = ModelPool(
        ModelManagerConfig(resident_cap=2, min_residency_ms=0),
        EngineConfig(),
        AudioConfig(),
        PACKS,
        MODELS,
    )

    async def say(model: str) -> float:
        async def segments() -> AsyncIterator[Segment]:
            yield Segment(0, "How much wood would a woodchuck chuck?", 0, 38)

        async with pool.hold(model) as loaded_model:
            spec = TurnSpec(voice="tone-a", seed=1)
            samples = [c.samples async for c in loaded_model.engine.speak(spec, segments())]
            return float(np.sum(np.abs(np.concatenate(samples)))) * await loaded_model.gain(
                "tone-a"
            )

    levels: list[float] = []

    async def keep(model: str) -> None:
        levels.extend([await say(model) for _ in range(5)])

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            await group.start(lambda *, task_status: pool.run(task_status=task_status))
            async with anyio.create_task_group() as speakers:
                for model in MODELS:
                    speakers.start_soon(keep, model)
            assert len(pool.loaded_models) <= 2
            group.cancel_scope.cancel()
    assert len(levels) == 20
    assert len(set(levels)) == 1
    assert pool.loaded_models == ()
