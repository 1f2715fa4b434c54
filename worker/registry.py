"""The worker's place in the fleet: its record, its heartbeat, and the requests of the dead.

Correctness rests on the lease's fence; this is liveness alone. A wrong guess about a dead worker
costs a pause, never a frame.
"""

import random
import time
import uuid
from collections.abc import Callable, Mapping
from typing import cast

import anyio
import structlog
from anyio.abc import TaskStatus

from schemas import records
from schemas.keys import Keys
from schemas.records import ModelRecord, WorkerRecord
from wire.link import Argument
from wire.switchboard import Switchboard
from worker import scripts
from worker.clock import ServerClock
from worker.config import WorkerConfig
from worker.ledger import Ledger

log = structlog.stdlib.get_logger(__name__)


LOOK_AROUND_BEATS = 10
"""Beats between two looks at all workers: what each of them does at each beat is quadratic."""

FORGET_AFTER = 10
"""The dead are listed for so many times the silence that made them so."""


class NameTakenError(Exception):
    """A living worker has this name."""


class Registry:
    """Beats for one worker, in server time, and buries dead ones.

    It beats on the worker's event loop: a loop that stalls does not beat.

    Args:
        describe: Makes the worker's record as it is now.
        models: Makes the records of the served models.
    """

    def __init__(
        self,
        switchboard: Switchboard,
        keys: Keys,
        config: WorkerConfig,
        name: str,
        clock: ServerClock,
        ledger: Ledger,
        describe: Callable[[], WorkerRecord],
        models: Callable[[], Mapping[str, ModelRecord]],
    ) -> None:
        self._switchboard = switchboard
        self._keys = keys
        self._name = name
        self._clock = clock
        self._ledger = ledger
        self._describe = describe
        self._models = models
        self._instance = uuid.uuid4().hex[:12]
        self._interval_s = config.heartbeat_ms / 1000
        self._dead_after_ms = config.dead_after_ms
        self._last_beat = 0.0
        self._judges_from = 0.0
        self._missing: set[str] = set()
        self._beats = random.randrange(LOOK_AROUND_BEATS)  # noqa: S311  not all at once

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Beat until cancelled; started with the first beat.

        Raises:
            NameTakenError: Another living worker has this name.
        """
        await self._enter()
        task_status.started()
        while True:
            due = self._last_beat + self._interval_s
            await anyio.sleep(max(0.0, due - time.monotonic()))
            if await self.beat() is None:
                raise NameTakenError(f"another worker goes by the name {self._name} now")
            await self._bury_the_dead()

    async def beat(self) -> int | None:
        """Renew the records now. Returns the server's unix ms; ``None``: the name is taken."""
        record = records.encode(self._describe())
        record.pop("beat_ms", None)
        flat = [part for pair in record.items() for part in pair]
        keys = [self._keys.worker(self._name)]
        asked = time.monotonic()
        reply = await scripts.BEAT(
            self._switchboard, keys, self._instance, self._dead_after_ms, *flat
        )
        if reply is None:
            return None
        now_ms = int(cast(bytes, reply))
        answered = time.monotonic()
        self._clock.set(now_ms, (answered - asked) * 1000)
        if answered - self._last_beat > 2 * self._interval_s:
            # Who was away himself cannot know whether the others were: give them time to beat.
            self._judges_from = answered + self._dead_after_ms / 1000
        self._last_beat = answered
        await self._renew(self._keys.workers, "zset", "ZADD", now_ms, self._name)
        for model, described in self._models().items():
            key = self._keys.model(model)
            fields = [part for pair in records.encode(described).items() for part in pair]
            await self._renew(key, "hash", "HSET", *fields)
            await self._switchboard.call(key, "PEXPIRE", key, self._dead_after_ms)
        return now_ms

    async def depart(self) -> None:
        """Leave the fleet in good order."""
        await scripts.DEPART(self._switchboard, [self._keys.worker(self._name)], self._instance)
        workers = self._keys.workers
        await self._switchboard.call(workers, "ZREM", workers, self._name)

    async def _enter(self) -> None:
        deadline = time.monotonic() + self._dead_after_ms / 1000 + self._interval_s
        while await self.beat() is None:
            # A predecessor that was just killed is gone soon; one that lives stays.
            if time.monotonic() > deadline:
                raise NameTakenError(
                    f"a worker named {self._name} is alive; give this one another --name"
                )
            await anyio.sleep(self._interval_s / 2)

    async def _bury_the_dead(self) -> None:
        """Hand back the requests of workers that no longer beat."""
        if self._last_beat < self._judges_from:
            return
        now_ms = self._clock.now_ms()
        workers = self._keys.workers
        late = f"({now_ms - self._dead_after_ms}"
        found = await self._switchboard.call(workers, "ZRANGEBYSCORE", workers, "-inf", late)
        dead = {name.decode("utf-8", "replace") for name in cast(list[bytes], found)}
        dead.discard(self._name)
        # At each beat: a read of one that is stalled may be answered after its burial.
        for owner in dead:
            await self._bury(owner)
        self._beats += 1
        if self._beats % LOOK_AROUND_BEATS == 0:
            await self._bury_the_unlisted()
            # By score, not by name: one that beats again in this moment stays. And not before all
            # others have seen it, who may serve other models than we do.
            gone = f"({now_ms - FORGET_AFTER * self._dead_after_ms}"
            await self._switchboard.call(workers, "ZREMRANGEBYSCORE", workers, "-inf", gone)

    async def _bury_the_unlisted(self) -> None:
        """Hand back the requests of those whom nobody knows. It costs more: each worker is read."""
        workers = self._keys.workers
        listed = cast(list[bytes], await self._switchboard.call(workers, "ZRANGE", workers, 0, -1))
        known = {name.decode("utf-8", "replace") for name in listed}
        missing = {
            owner for model in self._models() for owner in await self._ledger.owners(model) - known
        }
        for owner in missing & self._missing:  # one that is new here may be about to be listed
            await self._bury(owner)
        self._missing = missing

    async def _bury(self, owner: str) -> None:
        """Hand back all that is in its name."""
        for model in self._models():
            count = await self._ledger.bury(model, owner)
            if count:
                log.warning("worker_dead", dead=owner, model=model, requests=count)

    async def _renew(self, key: str, kind: str, command: str, *args: Argument) -> None:
        """Write to a key of ours. What is of another type under its name is debris."""
        found = await self._switchboard.call(key, "TYPE", key)
        if found not in (kind.encode(), b"none"):
            log.warning("wrong_type_removed", key=key)
            await self._switchboard.call(key, "DEL", key)
        await self._switchboard.call(key, command, key, *args)
