"""A fleet for tests: real workers, in this process or in their own, and a raw orchestrator."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import numpy as np
from redis.asyncio import Redis

from tests.harness import ROOT
from voicefleet.schemas import audio
from voicefleet.schemas.audio import AudioEntry, End, Frame, Start
from voicefleet.schemas.keys import BACKLOG, GROUP, Keys
from voicefleet.wire.connect import connect
from voicefleet.wire.endpoint import RedisConfig, resolve
from voicefleet.worker.config.sections import Config, ModelManagerConfig, WorkerConfig
from voicefleet.worker.engines.registry import EngineConfig
from voicefleet.worker.engines.tone.family import ToneConfig
from voicefleet.worker.service import Service

HANG_S = 60.0
"""Nothing here takes that long: a test that waits for more hangs."""


class Heard(msgspec.Struct):
    """One turn as a listener received it. Arrivals are on the monotonic clock, in s."""

    entries: list[AudioEntry]
    arrivals: list[float]

    @property
    def start(self) -> Start | None:
        return next((entry for entry in self.entries if isinstance(entry, Start)), None)

    @property
    def end(self) -> End:
        end = self.entries[-1]
        assert isinstance(end, End), f"the turn has no end yet: {end}"
        return end

    @property
    def frames(self) -> list[Frame]:
        return [entry for entry in self.entries if isinstance(entry, Frame)]

    @property
    def pcm(self) -> bytes:
        return b"".join(frame.pcm for frame in self.frames)

    @property
    def samples(self) -> np.ndarray:
        return np.frombuffer(self.pcm, "<i2")

    @property
    def longest_wait(self) -> float:
        """The longest time between two entries, in seconds."""
        return max(b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False))

    def check(self) -> None:
        """Check what the protocol promises of the entries of one turn."""
        turn = self.entries[0].id.turn
        end = self.end
        numbers = [entry.id.n for entry in self.entries]
        assert {entry.id.turn for entry in self.entries} == {turn}
        if self.start is None:
            assert numbers == [1], f"an unspoken turn is its end alone, not {numbers}"
            assert end.frames == 0
            return
        assert numbers == list(range(len(numbers))), "numbers without gap or repeat from 0"
        assert isinstance(self.entries[0], Start)
        assert all(isinstance(entry, Frame) for entry in self.entries[1:-1])
        assert end.frames == len(self.frames)
        size = 2 * audio.samples_per_frame(self.start.sample_rate)
        assert {len(frame.pcm) for frame in self.frames} <= {size}


class Orchestrator:
    """A client that uses raw Redis commands, as one in any language could."""

    def __init__(self, redis: Redis, prefix: str, model: str = "tone-test") -> None:
        self.redis: Any = redis
        self.keys = Keys(prefix)
        self.model = model

    async def add(self, session: str, text: str | None = None, **fields: object) -> str:
        """XADD one request; returns its entry id."""
        if text is not None:
            fields["text"] = text
        entry = await self.redis.xadd(
            self.keys.requests(fields.pop("model", self.model)),
            {"session": session, **{k: v for k, v in fields.items() if v is not None}},
        )
        return entry.decode()

    async def control(self, session: str, value: str) -> None:
        await self.redis.set(self.keys.control(session), value, ex=60)

    async def write(self, session: str, request: str, **fields: object) -> None:
        """XADD to a text stream."""
        key = self.keys.text(session, request)
        await self.redis.xadd(key, fields)
        await self.redis.expire(key, 60)

    async def entries(
        self, session: str, after: str = "0-0", timeout_s: float = HANG_S
    ) -> AsyncGenerator[tuple[float, AudioEntry]]:
        """Yield the session's entries as they arrive; fail after ``timeout_s`` without one."""
        deadline = time.monotonic() + timeout_s
        while True:
            reply = await self.redis.xread({self.keys.audio(session): after}, count=500, block=1000)
            arrival = time.monotonic()
            if not reply:
                assert arrival < deadline, f"no entry after {after} in {session}"
                continue
            deadline = arrival + timeout_s
            streams = reply.values() if isinstance(reply, dict) else [es for _, es in reply]
            for entries in streams:
                flat = entries[0] if entries and isinstance(entries[0], list) else entries
                for entry, fields in flat:
                    after = entry.decode()
                    yield arrival, audio.decode(entry, fields)

    async def hear(
        self, session: str, turn: int = 1, *, until: int | None = None, timeout_s: float = HANG_S
    ) -> Heard:
        """Read a turn to its end, or to frame ``until``. A turn with its end is checked."""
        heard = Heard([], [])
        async for arrival, entry in self.entries(session, f"{turn - 1}-99999999", timeout_s):
            assert entry.id.turn == turn, f"turn {entry.id.turn} before the end of turn {turn}"
            heard.entries.append(entry)
            heard.arrivals.append(arrival)
            if isinstance(entry, End):
                heard.check()
                return heard
            if until is not None and entry.id.n >= until:
                return heard
        raise AssertionError("unreachable")

    async def turns(self, session: str, count: int) -> list[Heard]:
        """Read the first ``count`` turns of a session to their ends."""
        return [await self.hear(session, turn) for turn in range(1, count + 1)]

    async def settled(self, model: str | None = None) -> None:
        """Wait until every request of the model is off the queue."""
        key = self.keys.requests(model or self.model)
        with anyio.fail_after(HANG_S):
            while await self.redis.xlen(key):
                await anyio.sleep(0.01)

    async def parked(self, model: str | None = None) -> int:
        """The number of requests in the backlog."""
        key = self.keys.requests(model or self.model)
        return len(await self.redis.xpending_range(key, GROUP, "-", "+", 10_000, BACKLOG))

    async def state(self, session: str) -> dict[str, str]:
        raw = await self.redis.hgetall(self.keys.session(session))
        return {name.decode(): value.decode() for name, value in raw.items()}

    async def dead(self) -> list[dict[str, str]]:
        """Dead letters, oldest first."""
        entries = await self.redis.xrange(self.keys.dead)
        return [{k.decode(): v.decode() for k, v in fields.items()} for _, fields in entries]

    async def worker(self, name: str) -> dict[str, str]:
        raw = await self.redis.hgetall(self.keys.worker(name))
        return {field.decode(): value.decode() for field, value in raw.items()}

    async def worker_is(self, name: str, state: str, timeout_s: float = HANG_S) -> None:
        """Wait for a worker's state."""
        with anyio.fail_after(timeout_s):
            while (await self.worker(name)).get("state") != state:
                await anyio.sleep(0.02)


def config(
    redis_url: str,
    prefix: str,
    *,
    models: tuple[str, ...] = ("tone-test",),
    tone: ToneConfig | None = None,
    **worker: Any,
) -> Config:
    return Config(
        worker=WorkerConfig(models=models, **worker),
        model_manager=ModelManagerConfig(
            voicepacks_dir=str(ROOT / "voicepacks"), preload_model_ids=models
        ),
        engine=EngineConfig(tone=tone or ToneConfig()),
        redis=RedisConfig(url=redis_url, prefix=prefix),
    )


@asynccontextmanager
async def serving(
    redis_url: str, prefix: str, *, name: str = "w1", **options: Any
) -> AsyncGenerator[Service]:
    """Run a worker in this process; it is ready, and drained at the end of the block."""
    settings = config(redis_url, prefix, name=name, **{"drain_timeout_s": 0.05, **options})
    async with connect(resolve(settings.redis)) as topology:
        service = Service(settings, topology)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.run)
            key = Keys(prefix).worker(name)
            with anyio.fail_after(HANG_S):
                while await topology.client.hget(key, "state") != b"ready":
                    await anyio.sleep(0.01)
            try:
                yield service
            finally:
                service.drain()


class WorkerProcess:
    """A worker process, run by the command that users run."""

    def __init__(self, redis_url: str, prefix: str, name: str, *flags: str, config: str) -> None:
        self.name = name
        command = [sys.executable, "-m", "voicefleet", "worker", "--config", config]
        command += ["--redis-url", redis_url, "--name", name, "--set", f"redis.prefix={prefix}"]
        for flag in flags:
            command += ["--set", flag]
        environ = {k: v for k, v in os.environ.items() if not k.startswith("VOICEFLEET_")}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def says(self, word: str) -> None:
        """Wait for a line of its log that contains the word."""
        stderr = self._process.stderr
        assert stderr is not None
        with anyio.fail_after(HANG_S):
            while word not in (line := await anyio.to_thread.run_sync(stderr.readline)):
                assert line, f"it ended and never said {word}"

    async def exited(self) -> int:
        """Wait for its end; returns the exit status."""
        with anyio.fail_after(HANG_S):
            while (status := self._process.poll()) is None:
                await anyio.sleep(0.02)
        return status

    def end(self) -> str:
        """Kill it if it runs; returns its log."""
        if self._process.poll() is None:
            self._process.kill()
        _, logged = self._process.communicate()
        return logged


@asynccontextmanager
async def worker_process(
    orchestrator: Orchestrator,
    redis_url: str,
    name: str,
    *flags: str,
    config: str = "configs/tone.yaml",
    ready_s: float = HANG_S,
) -> AsyncGenerator[WorkerProcess]:
    """Run a worker process, ready within ``ready_s``; its log is printed at the end."""
    worker = WorkerProcess(redis_url, orchestrator.keys.prefix, name, *flags, config=config)
    try:
        await orchestrator.worker_is(name, "ready", ready_s)
        yield worker
    finally:
        print(worker.end())
