"""Reads the fleet's records: capacity during a run, and what is left after it."""

import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import anyio
from redis.exceptions import RedisError

from verify.chaos.journal import Capacity, FinalState, Journal
from verify.chaos.node import Node
from verify.chaos.servers import Servers
from verify.chaos.workers import Worker, Workers
from voicefleet.schemas.keys import GROUP, Keys
from voicefleet.wire.connect import client as client_of
from voicefleet.wire.endpoint import RedisConfig, resolve

LOOK_S: Final = 0.2
QUIET_S: Final = 15.0
_ANSWER_S: Final = 1.6
_NO_TTL: Final = -1


class Records:
    """Reads the records of workers, sessions and queues. Made by ``opened``."""

    def __init__(self, client: Any, servers: Servers, keys: Keys) -> None:
        self._client = client
        self._servers = servers
        self.keys = keys

    @classmethod
    @asynccontextmanager
    async def opened(cls, servers: Servers, keys: Keys) -> "AsyncGenerator[Records]":
        """Connect to the servers' URL."""
        config = RedisConfig(url=servers.url, connect_timeout_s=1.0, timeout_s=1.0)
        client = client_of(resolve(config))
        try:
            yield cls(client, servers, keys)
        finally:
            await client.aclose()

    async def worker(self, name: str) -> dict[str, str]:
        """A worker's record; empty where there is none. Raises redis-py's errors."""
        return _text(await self._client.hgetall(self.keys.worker(name)))

    async def session(self, session: str) -> dict[str, str]:
        """A session's record; empty where there is none. Raises redis-py's errors."""
        return _text(await self._client.hgetall(self.keys.session(session)))

    async def ready(self, workers: Workers) -> list[str]:
        """Names of the workers that are ready, sorted. Raises redis-py's errors."""
        return sorted([one.name for one in workers if _is_ready(one, await self.worker(one.name))])

    async def speaking(self, sessions: Iterable[str]) -> dict[str, dict[str, str]]:
        """The records of the sessions that are speaking now. Raises redis-py's errors."""
        found: dict[str, dict[str, str]] = {}
        for session in sessions:
            record = await self.session(session)
            if record.get("state") == "speaking":
                found[session] = record
        return found

    async def capacity(self, workers: Iterable[Worker]) -> Capacity:
        """The workers' capacity at this moment; none where no server answers."""
        at, ready = time.monotonic(), list[dict[str, str]]()
        with suppress(RedisError, OSError, TimeoutError), anyio.fail_after(_ANSWER_S):
            records = [(worker, await self.worker(worker.name)) for worker in workers]
            ready = [record for worker, record in records if _is_ready(worker, record)]
        return Capacity(
            at=at,
            ready=len(ready),
            slots_total=sum(int(record["slots_total"]) for record in ready),
            slots_free=sum(int(record["slots_free"]) for record in ready),
            speaking=sum(int(record["sessions"]) for record in ready),
        )

    async def watch(self, workers: Iterable[Worker], journal: Journal) -> None:
        """Write the capacity into the journal, several times a second, until cancelled."""
        while True:
            journal.write(await self.capacity(workers))
            await anyio.sleep(LOOK_S)

    async def final_state(self, names: tuple[str, ...], models: Iterable[str]) -> FinalState:
        """The state of the servers, once all is idle or after ``QUIET_S``."""
        models = tuple(models)
        deadline = time.monotonic() + QUIET_S
        while True:
            found = await self.look(names, models)
            idle = all(free == total for free, total in found.slots.values())
            still = not any((*found.pending.values(), *found.queued.values(), found.live_sessions))
            if (idle and still and len(found.slots) == len(names)) or time.monotonic() > deadline:
                return found
            await anyio.sleep(LOOK_S)

    async def look(self, names: tuple[str, ...], models: tuple[str, ...]) -> FinalState:
        """The state of the servers at this moment. Raises redis-py's errors."""
        pending: dict[str, int] = {}
        queued: dict[str, int] = {}
        for model in models:
            key = self.keys.requests(model)
            queued[model] = await self._client.xlen(key)
            pending[model] = await self._pending(key) if queued[model] else 0
        slots: dict[str, tuple[int, int]] = {}
        for name in names:
            record = await self.worker(name)
            if record:
                slots[name] = int(record["slots_free"]), int(record["slots_total"])
        letters = await self._client.xrange(self.keys.dead)
        without_ttl: list[str] = []
        live: list[str] = []
        for node in await self._servers.primaries():
            lasting, speaking = await self._sweep(node)
            without_ttl += lasting
            live += speaking
        return FinalState(
            at=time.monotonic(),
            without_ttl=sorted(without_ttl),
            pending=pending,
            queued=queued,
            slots=slots,
            dead_letters=[_text(fields) for _, fields in letters],
            live_sessions=sorted(live),
        )

    async def _pending(self, key: str) -> int:
        facts = await self._client.xpending(key, GROUP)
        return int(facts["pending"])

    async def _sweep(self, node: Node) -> tuple[list[str], list[str]]:
        """The keys of one server that lack a TTL, and its sessions that are not idle."""
        may_stay = (self.keys.workers, self.keys.dead)
        queues, sessions = self.keys.requests(""), f"{self.keys.prefix}:session:"
        lasting: list[str] = []
        live: list[str] = []
        async with node.client() as client:
            async for key in client.scan_iter(f"{self.keys.prefix}:*", count=1000):
                may = key in may_stay or key.startswith(queues)
                if not may and await client.pttl(key) == _NO_TTL:
                    lasting.append(key)
                if key.startswith(sessions) and await client.hget(key, "state") != "idle":
                    live.append(key.removeprefix(sessions).strip("{}"))
        return lasting, live


def _is_ready(worker: Worker, record: dict[str, str]) -> bool:
    """Whether the record is this process's: a dead worker's outlives it a little."""
    return record.get("state") == "ready" and record.get("pid") == str(worker.pid)


def _text(fields: Any) -> dict[str, str]:
    return {k.decode(): v.decode("utf-8", "replace") for k, v in dict(fields).items()}
