"""The clients and the recorder of a chaos run, against real servers and workers."""

import signal
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis, from_url
from redis.asyncio.cluster import RedisCluster

from tests.harness.fleet import Orchestrator, worker_process
from verify.chaos.checker import check
from verify.chaos.journal import Asked, Fault, Heard, Journal, RolledBack, Wrote, read
from verify.chaos.orchestrator import drive
from verify.chaos.plan import Models, Plan
from verify.chaos.reading import Entry, Reading
from verify.chaos.recorder import recording
from verify.chaos.references import make_references
from verify.chaos.request_writer import RequestWriter
from verify.chaos.stream_id import Id
from verify.chaos.utterances import Piece
from voicefleet.embedded_server import EmbeddedServer
from voicefleet.schemas.keys import Keys
from voicefleet.wire.connect import client, connect
from voicefleet.wire.endpoint import RedisConfig, resolve

MODELS = Models(saboteur="saboteur-test", others=("other",))


# The plan.


def test_the_same_seed_makes_the_same_plan() -> None:
    plan = Plan.make(5, 20, 400, MODELS)
    assert plan == Plan.make(5, 20, 400, MODELS)
    assert plan != Plan.make(6, 20, 400, MODELS)


def test_a_plan_has_what_was_asked_for() -> None:
    plan = Plan.make(5, 23, 1000, MODELS)
    assert plan.turns == 1000
    assert len(set(plan.sessions)) == 23
    asks = [ask for script in plan.scripts for scene in script.scenes for ask in scene.asks]
    kinds = Counter(scene.kind for script in plan.scripts for scene in script.scenes)
    assert set(kinds) >= {"plain", "streamed", "interrupt", "stop", "pause", "burst", "saboteur"}
    assert {plan.utterances[ask.utterance].model for ask in asks if ask.utterance} == {
        "tone-test",
        "saboteur-test",
        "other",
    }
    assert sum(script.by_client for script in plan.scripts) == 2
    for script in plan.scripts:
        names = [ask.request for scene in script.scenes for ask in scene.asks]
        assert len(names) == len(set(names))


def test_utterances_are_as_long_as_they_should_be() -> None:
    plan = Plan.make(1, 1, 1, Models())
    assert len(plan.utterances) == 24
    assert sum(utterance.streamed for utterance in plan.utterances.values()) == 8
    for utterance in plan.utterances.values():
        assert 0.8 < utterance.seconds < 7
        assert utterance.streamed or len(utterance.pieces) == 1


# Reading.


class Recorded:
    """A ``Listener`` that records its calls."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.shrinks: list[tuple[str, str | None]] = []
        self.changed = anyio.Event()

    def heard(self, session: str, entries: list[Entry]) -> None:
        self.ids += [f"{session} {entry.id}" for entry in entries]
        self._pulse()

    def rolled_back(self, session: str, seen: Id, newest: Id | None) -> None:
        self.shrinks.append((str(seen), None if newest is None else str(newest)))
        self._pulse()

    def outage(self, at: float, until: float) -> None:
        pass

    def _pulse(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    async def until(self, *ids: str, shrinks: int = 0) -> None:
        with anyio.fail_after(20):
            while self.ids[len(self.ids) - len(ids) :] != [*ids] or len(self.shrinks) < shrinks:
                await self.changed.wait()


@asynccontextmanager
async def reading(url: str, keys: Keys, *sessions: str) -> AsyncGenerator[Recorded]:
    ear = Recorded()
    async with (
        connect(resolve(RedisConfig(url=url))) as topology,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(Reading(topology, keys, sessions, ear).run)
        yield ear
        tasks.cancel_scope.cancel()


async def say(redis: Any, key: str, *entries: str, when: str = "0") -> None:
    for entry in entries:
        begins = entry.endswith("-0")
        kind = {"event": "start", "t": when} if begins else {"pcm": when + entry}
        await redis.xadd(key, kind, id=entry)
    await redis.expire(key, 60)


async def test_it_reads_on_and_finds_out_what_was_forgotten(
    redis_url: str, redis: Redis, prefix: str
) -> None:
    keys = Keys(prefix)
    key = keys.audio("a")
    async with reading(redis_url, keys, "a", "b") as ear:
        await say(redis, key, "1-0", "1-1", "1-2", "1-3")
        await say(redis, keys.audio("b"), "1-0")
        await ear.until("b 1-0")
        # A tail is forgotten, and written again.
        await redis.delete(key)
        await say(redis, key, "1-0", "1-1")
        await ear.until(shrinks=1)
        await say(redis, key, "1-2")
        await ear.until("a 1-2")
        assert ear.shrinks == [("1-3", "1-1")]
        # All is forgotten, and other entries have the same ids.
        await redis.delete(key)
        await ear.until(shrinks=2)
        await say(redis, key, "1-0", "1-1", "1-2", "1-3", when="1")
        await ear.until("a 1-0", "a 1-1", "a 1-2", "a 1-3")
        await redis.delete(key)
        await say(redis, key, "1-0", "1-1", "1-2", "1-3", "1-4", when="2")
        await ear.until("a 1-0", "a 1-1", "a 1-2", "a 1-3", "a 1-4", shrinks=3)
        assert ear.shrinks[1] == ("1-2", None)
        # Its newest entry may have been read before it was found out.
        assert ear.shrinks[2] in (("1-3", "1-4"), ("1-4", "1-4"))


async def test_it_reads_the_streams_of_a_cluster(
    cluster_url: str, cluster: RedisCluster, prefix: str
) -> None:
    keys = Keys(prefix)
    sessions = [f"s{k}" for k in range(6)]
    async with reading(cluster_url, keys, *sessions) as ear:
        for session in sessions:
            await say(cluster, keys.audio(session), "1-0", "1-1")
            await ear.until(f"{session} 1-1")
        await cluster.delete(keys.audio("s3"))
        await ear.until(shrinks=1)
        assert ear.shrinks == [("1-1", None)]


async def test_the_recorder_writes_down_all_it_reads(tmp_path: Path) -> None:
    path = tmp_path / "recorder"
    async with EmbeddedServer.start() as server, from_url(server.url) as redis:
        async with recording(server.url, ["a"], path):
            await say(redis, Keys().audio("a"), "1-0", "1-1")
            await redis.xadd(Keys().audio("a"), {"event": "end", "reason": "completed"}, id="1-2")
        events = [event for event in read([path]) if isinstance(event, Heard | RolledBack)]
    assert [(e.turn, e.n, e.kind) for e in events if isinstance(e, Heard)] == [
        (1, 0, "start"),
        (1, 1, "frame"),
        (1, 2, "end"),
    ]
    frame = events[1]
    assert isinstance(frame, Heard)
    assert (frame.size, len(frame.digest), frame.fields) == (4, 16, {})


# Writing.


async def test_text_is_written_once_and_again_where_it_was_forgotten(
    redis_url: str, redis: Redis, prefix: str, tmp_path: Path
) -> None:
    keys = Keys(prefix)
    key = keys.text("a", "r")
    path = tmp_path / "journal"
    pieces = [Piece("one "), Piece("two ", flush=True), Piece("three")]
    raw = client(resolve(RedisConfig(url=redis_url)))
    try:
        with Journal(path) as journal:
            writer = RequestWriter(raw, keys, journal)
            await writer.write("a", "r", pieces[:2], end=False)
            await writer.write("a", "r", pieces[:2], end=False)
            assert await redis.xlen(key) == 2
            await redis.delete(key)
            await writer.write("a", "r", pieces, end=True)
            await writer.write("a", "r", pieces, end=True)
    finally:
        await raw.aclose()
    entries = await redis.xrange(key)
    assert [fields for _, fields in entries] == [
        {b"text": b"one "},
        {b"text": b"two ", b"flush": b"1"},
        {b"text": b"three"},
        {b"end": b"1"},
    ]
    wrote = [event for event in read([path]) if isinstance(event, Wrote)]
    assert [event.ended for event in wrote] == [False, False, False, False, False, True]


# All of it.


async def driven(server: EmbeddedServer, directory: Path, faults: Any = None) -> Plan:
    """A small run of two workers; ``faults`` may act on the first one meanwhile."""
    plan = Plan.make(7, 15, 60, Models())
    async with from_url(server.url) as redis:
        fleet = Orchestrator(redis, "tts")
        async with (
            worker_process(fleet, server.url, "w1") as first,
            worker_process(fleet, server.url, "w2"),
        ):
            with Journal(directory / "clients") as journal:
                await make_references(server.url, plan, journal)
                async with (
                    recording(server.url, plan.sessions, directory / "recorder"),
                    anyio.create_task_group() as tasks,
                ):
                    if faults is not None:
                        tasks.start_soon(faults, first, journal)
                    assert await drive(server.url, plan, journal, until_answered_s=80)
    return plan


@pytest.mark.timeout(180)
async def test_an_undisturbed_run_keeps_every_promise(tmp_path: Path) -> None:
    async with EmbeddedServer.start() as server:
        plan = await driven(server, tmp_path)
    verdict = check([tmp_path / "clients", tmp_path / "recorder"])
    assert verdict.violations == ()
    assert verdict.requests == sum(verdict.ends.values()) == plan.turns
    assert {"completed", "interrupted"} <= set(verdict.ends)


@pytest.mark.timeout(180)
async def test_a_killed_worker_breaks_no_promise(tmp_path: Path) -> None:
    async def kill(worker: Any, journal: Journal) -> None:
        await anyio.sleep(4)
        at = time.monotonic()
        worker.signal(signal.SIGKILL)
        journal.write(Fault(at=at, until=time.monotonic(), kind="worker_kill", target="w1"))

    async with EmbeddedServer.start() as server:
        plan = await driven(server, tmp_path, kill)
    paths = [tmp_path / "clients", tmp_path / "recorder"]
    verdict = check(paths)
    assert verdict.violations == ()
    assert verdict.requests == plan.turns
    assert next(row for row in verdict.rows if row.fault == "worker_kill").affected > 0
    asks = [event for event in read(paths) if isinstance(event, Asked)]
    assert {ask.request for ask in asks if ask.session == plan.sessions[0]}
