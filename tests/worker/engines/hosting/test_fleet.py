"""An engine in a process of its own, in a worker, through Redis."""

import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest

from tests.harness import hosted_core
from tests.harness.fleet import HANG_S, Orchestrator, serving
from voicefleet.worker.engines import registry
from voicefleet.worker.engines.hosting.engine import HostedEngine
from voicefleet.worker.engines.tone import family as tone
from voicefleet.worker.engines.tone.family import ToneConfig
from voicefleet.worker.service import Service
from voicefleet.worker.voicepacks.voicepack import Voicepack

pytestmark = pytest.mark.anyio

TEXT = "One two three four. Five six seven eight. Nine ten eleven twelve."
SLOW = {"step_s": 0.02}
"""Speaks five times as fast as real time: there is time to do something in mid-turn."""


@asynccontextmanager
async def hosting(
    redis_url: str,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    core: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncGenerator[Service]:
    """A worker whose tone models are spoken in child processes."""

    def engine(pack: Voicepack, _: ToneConfig) -> HostedEngine:
        return HostedEngine(pack, hosted_core.NAME, core or {}, synthesis_timeout_s=1.0)

    monkeypatch.setitem(registry.FAMILIES, "tone", replace(tone.FAMILY, engine=engine))
    async with serving(redis_url, prefix, **options) as service:
        yield service


def engine_of(service: Service) -> HostedEngine:
    (loaded_model,) = service._context.pool.loaded_models  # pyright: ignore[reportPrivateUsage]
    engine = loaded_model.engine
    assert isinstance(engine, HostedEngine)
    return engine


async def record_where(fleet: Orchestrator, condition: Any) -> dict[str, str]:
    """The worker's record, once it is as it should be."""
    with anyio.fail_after(HANG_S):
        while not condition(record := await fleet.worker("w1")):
            await anyio.sleep(0.01)
    return record


async def test_turns_of_a_hosted_engine_side_by_side(
    fleet: Orchestrator, redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hosting(redis_url, prefix, monkeypatch):
        for index in range(16):
            await fleet.add(f"s{index}", TEXT, seed=5, lead_ms=5000)
        heard = [await fleet.hear(f"s{index}") for index in range(16)]
    assert {turn.end.reason for turn in heard} == {"completed"}
    assert len({turn.pcm for turn in heard}) == 1


async def test_the_death_of_an_engine_in_mid_turn_is_not_heard(
    fleet: Orchestrator, redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A load that waits, so that there is time to see the worker without its engine.
    core = SLOW | {"load_s": 1.5}
    async with hosting(redis_url, prefix, monkeypatch, core=core, heartbeat_ms=50) as service:
        await fleet.add("calm", TEXT, seed=5, lead_ms=0)
        calm = await fleet.hear("calm")
        await fleet.add("s", TEXT, seed=5, lead_ms=0)
        await fleet.hear("s", until=30)
        first = engine_of(service).pid
        assert (await fleet.state("s"))["state"] == "speaking"
        os.kill(first, signal.SIGKILL)
        record = await record_where(fleet, lambda record: "faults" in record)
        assert record["faults"] == "tone-test: its process ended (SIGKILL); reloading"
        record = await record_where(fleet, lambda record: record["slots_total"] == "0")
        assert (record["state"], record["slots_free"]) == ("ready", "0")
        heard = await fleet.hear("s")
        assert heard.end.reason == "completed"
        assert heard.pcm == calm.pcm
        record = await record_where(fleet, lambda record: "faults" not in record)
        assert record["slots_total"] == "64"
        assert engine_of(service).pid != first
        await fleet.settled()
        assert not await fleet.dead()


async def test_a_hung_engine_is_replaced_and_its_turns_go_on(
    fleet: Orchestrator,
    redis_url: str,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with hosting(redis_url, prefix, monkeypatch, core=SLOW) as service:
        await fleet.add("calm", TEXT, seed=5, lead_ms=0)
        calm = await fleet.hear("calm")
        first = engine_of(service).pid
        await fleet.add("s", TEXT, seed=5, lead_ms=0)
        await fleet.hear("s", until=30)
        assert (await fleet.state("s"))["state"] == "speaking"
        os.kill(first, signal.SIGSTOP)
        heard = await fleet.hear("s")
        assert heard.pcm == calm.pcm
        assert engine_of(service).pid != first
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)
        assert not await fleet.dead()


async def test_a_text_that_kills_engines_is_given_up(
    fleet: Orchestrator, redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voicefleet.worker.models.pool.RELOAD_AFTER_S", (0.0,))
    async with hosting(redis_url, prefix, monkeypatch, max_deliveries=2):
        await fleet.add("s", f"crash {TEXT}", request="r")
        heard = await fleet.hear("s")
        assert heard.end.reason == "failed"
        assert "its process ended" in (heard.end.error or "")
        await fleet.settled()
        (letter,) = await fleet.dead()
        assert letter["request"] == "r"
        await fleet.add("other", TEXT, lead_ms=0)
        assert (await fleet.hear("other")).end.reason == "completed"


async def test_slots_follow_what_the_engine_can_carry(
    fleet: Orchestrator, redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = {"device": "cuda:0", "ballast_mb": 16, "slots": 20}
    async with hosting(redis_url, prefix, monkeypatch, core=gpu, heartbeat_ms=50):
        record = await record_where(fleet, lambda record: record["state"] == "ready")
        assert (record["device"], record["slots_total"]) == ("cuda:0", "20")
        assert (record["vram_used_mb"], record["vram_total_mb"]) == ("16", "1024")
        assert (record["session_mb"], record["voice_mb"]) == ("0.5", "0")
        assert "faults" not in record
        await fleet.add("s", "Make do with fewer.", lead_ms=0)
        assert (await fleet.hear("s")).end.reason == "completed"
        record = await record_where(fleet, lambda record: record["slots_total"] == "2")
        await record_where(fleet, lambda record: record["slots_free"] == "2")


async def test_a_worker_may_offer_less_than_its_engines(
    fleet: Orchestrator, redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hosting(redis_url, prefix, monkeypatch, slots=3, heartbeat_ms=50):
        record = await record_where(fleet, lambda record: record["state"] == "ready")
        assert record["slots_total"] == "3"
        assert "vram_used_mb" not in record, "the memory of a CPU is no VRAM"
