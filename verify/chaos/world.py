"""All that a fault can touch."""

import random
from collections.abc import Container
from pathlib import Path

import anyio
import msgspec
from anyio.abc import TaskGroup

from verify.chaos.journal import Journal
from verify.chaos.network import Network
from verify.chaos.records import Records
from verify.chaos.servers import Servers
from verify.chaos.workers import Worker, Workers

PATIENCE_S = 10.0


class CannotInjectError(Exception):
    """The fault cannot be injected here or now; the message says why."""


class World(msgspec.Struct, frozen=True, kw_only=True):
    """The running parts. ``background`` runs tasks that outlive their injection."""

    servers: Servers
    workers: Workers
    network: Network | None
    records: Records
    journal: Journal
    sessions: tuple[str, ...]
    background: TaskGroup

    async def all_ready(self, limit_s: float = PATIENCE_S) -> bool:
        """Wait until every worker is ready; returns whether they are."""
        with anyio.move_on_after(limit_s):
            while True:
                found = await self.records.capacity(self.workers)
                if found.ready == len(self.workers.names):
                    return True
                await anyio.sleep(0.1)
        return False

    async def some_workers(
        self, rng: random.Random, count: int | None = None, among: Container[str] | None = None
    ) -> list[Worker]:
        """Ready workers, chosen at random; without ``count``, all but one of each configuration.

        Raises:
            CannotInjectError: Fewer are ready; one of each configuration stays.
        """
        ready = [
            name
            for name in await self.records.ready(self.workers)
            if among is None or name in among
        ]
        kept: set[Path] = set()
        spare: list[Worker] = []
        for name in rng.sample(ready, len(ready)):
            worker = self.workers[name]
            if worker.spec.config in kept:
                spare.append(worker)
            kept.add(worker.spec.config)
        if len(spare) < (1 if count is None else count):
            raise CannotInjectError(f"workers ready: {len(ready)}, and one must be left")
        return spare[:count]
