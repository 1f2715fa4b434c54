"""The worker's heartbeat, its records, and the requests of workers that stopped beating.

This is about liveness alone. Declaring a live worker dead pauses its turns for a moment; the fence
of the lease keeps every frame right.
"""

import random
import time
import uuid
from collections.abc import Callable, Mapping
from typing import cast

import anyio
import structlog
from anyio.abc import TaskStatus

from voicefleet.schemas import records
from voicefleet.schemas.keys import Keys
from voicefleet.schemas.records import ModelRecord, WorkerRecord
from voicefleet.wire.link import Command, ReplyError
from voicefleet.wire.router import Router
from voicefleet.worker.config.sections import WorkerConfig
from voicefleet.worker.intake.queue_reader import BLOCK_MS
from voicefleet.worker.store.clock import ServerClock
from voicefleet.worker.store.queues import QueueStore
from voicefleet.worker.store.scripts.worker import Beat, Depart

log = structlog.stdlib.get_logger(__name__)

UNLISTED_CHECK_BEATS = 10
"""Every so many beats a worker checks for owners that are not listed as workers at all. If each
did so at each beat, the fleet's work would grow with the square of its size."""

REWRITE_S = 10.0
"""Records that have not changed are only renewed, and rewritten this often: others may write to
them too."""

MAX_RECORD_MS = 3000
"""The longest TTL of a record, unless ``dead_after_ms`` is longer."""

MAX_SILENT = 16
"""How many workers are checked at once, the longest silent first."""


class NameTakenError(Exception):
    """Another living worker has this name."""


class Heartbeat:
    """Beats for one worker, in server time, and hands back the requests of dead workers.

    It runs on the worker's event loop, so that a worker whose loop stalls stops beating.

    Args:
        describe: Returns the worker's record as of now.
        models: Returns the records of the served models.
    """

    def __init__(
        self,
        router: Router,
        keys: Keys,
        config: WorkerConfig,
        name: str,
        clock: ServerClock,
        queues: QueueStore,
        describe: Callable[[], WorkerRecord],
        models: Callable[[], Mapping[str, ModelRecord]],
    ) -> None:
        self._router = router
        self._keys = keys
        self._name = name
        self._clock = clock
        self._queues = queues
        self._describe = describe
        self._models = models
        self._instance = uuid.uuid4().hex[:12]
        self._interval_s = config.heartbeat_ms / 1000
        self._dead_after_ms = config.dead_after_ms
        # A record is renewed when it would expire within ``dead_after_ms``.
        self._ttl_ms = max(config.dead_after_ms, min(2 * config.dead_after_ms, MAX_RECORD_MS))
        self._renew_s = (self._ttl_ms - config.dead_after_ms) / 1000
        self._living_ms = max(config.dead_after_ms, int((self._renew_s + self._interval_s) * 1000))
        self._written: dict[str, str] = {}
        self._written_models: dict[str, dict[str, str]] = {}
        self._renewed_at = self._rewritten_at = -REWRITE_S
        self._check_at = 0.0
        self._last_beat = 0.0
        self._trusts_beats_from = 0.0
        self._missing: set[str] = set()
        self._beats = random.randrange(UNLISTED_CHECK_BEATS)  # noqa: S311  not all at once

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Beat until cancelled. ``task_status`` is started with the first beat.

        Raises:
            NameTakenError: Another living worker has this name.
        """
        await self._enter()
        task_status.started()
        while True:
            due = self._last_beat + self._interval_s
            await anyio.sleep(max(0.0, due - time.monotonic()))
            if await self._pulse() is None:
                raise NameTakenError(f"another worker goes by the name {self._name} now")
            await self._check_others()

    async def _pulse(self) -> int | None:
        """Beat once; renew the records too when they have changed or are about to expire."""
        renewed_s = time.monotonic() - self._renewed_at
        if renewed_s >= self._renew_s or self._record() != self._written:
            return await self.beat()
        now_ms = self._clock.now_ms()
        await self._list(now_ms)
        answered = time.monotonic()
        if answered - self._last_beat > 2 * self._interval_s:
            return await self.beat()  # we or the server were away: our time may be an old one
        self._last_beat = answered
        return now_ms

    async def beat(self) -> int | None:
        """Beat and renew the records. Returns server unix ms; ``None``: the name is taken."""
        asked = time.monotonic()
        rewrite = asked - self._rewritten_at >= REWRITE_S
        record = self._record()
        merges = not rewrite and record.keys() == self._written.keys()
        now_ms = await Beat(
            record=self._keys.worker(self._name),
            instance=self._instance,
            ttl_ms=self._ttl_ms,
            living_ms=self._living_ms,
            merges=merges,
            fields=record,
        ).run(self._router)
        if now_ms is None:
            return None
        self._written = record
        answered = time.monotonic()
        self._clock.set(now_ms, (answered - asked) * 1000)
        if answered - self._last_beat > 2 * self._interval_s:
            # After a pause of our own, the others' last beats say nothing: give them time to beat.
            self._trusts_beats_from = answered + self._dead_after_ms / 1000
        self._last_beat = self._renewed_at = answered
        await self._list(now_ms)
        for model, described in self._models().items():
            await self._renew_model(model, records.encode(described), rewrite=rewrite)
        if rewrite:
            self._rewritten_at = answered
        return now_ms

    def _record(self) -> dict[str, str]:
        record = records.encode(self._describe())
        record.pop("beat_ms", None)
        return record

    async def _list(self, now_ms: int) -> None:
        await self._write(self._keys.workers, ("ZADD", self._keys.workers, now_ms, self._name))

    async def _renew_model(self, model: str, record: dict[str, str], *, rewrite: bool) -> None:
        key = self._keys.model(model)
        renew: Command = ("PEXPIRE", key, self._ttl_ms)
        is_same = not rewrite and record == self._written_models.get(model)
        if is_same and await self._router.call(key, *renew):
            return
        fields = [part for pair in record.items() for part in pair]
        await self._write(key, ("HSET", key, *fields), renew)
        self._written_models[model] = record

    async def depart(self) -> None:
        """Remove this worker's record, and its name from the list of workers."""
        record = self._keys.worker(self._name)
        await Depart(record=record, instance=self._instance).run(self._router)
        workers = self._keys.workers
        await self._router.call(workers, "ZREM", workers, self._name)

    async def _enter(self) -> None:
        deadline = time.monotonic() + self._ttl_ms / 1000 + self._interval_s
        while await self.beat() is None:
            # The record of a predecessor that was just killed expires soon.
            if time.monotonic() > deadline:
                raise NameTakenError(
                    f"a worker named {self._name} is alive; give this one another --name"
                )
            await anyio.sleep(self._interval_s / 2)

    async def _check_others(self) -> None:
        """Hand back the requests of workers that stopped beating."""
        if self._last_beat < self._trusts_beats_from:
            return
        self._beats += 1
        if self._beats % UNLISTED_CHECK_BEATS == 0:
            await self._check_unlisted()
        if time.monotonic() < self._check_at:
            return
        now_ms, workers = self._clock.now_ms(), self._keys.workers
        late_ms = now_ms - self._dead_after_ms
        listed = await self._longest_silent("+inf", MAX_SILENT)
        if len(listed) == MAX_SILENT and listed[-1][1] < late_ms:
            listed = await self._longest_silent(f"({late_ms}", -1)
        others = [(name, beat_ms) for name, beat_ms in listed if name != self._name]
        # Again at each beat: the pending read of a stalled worker may still be answered.
        for owner, beat_ms in others:
            if beat_ms < late_ms:
                await self._hand_back(owner)
        # No worker can be dead before the one that has been silent for the longest time.
        oldest_ms = min((beat_ms for _, beat_ms in others), default=now_ms)
        left_ms = min(max(oldest_ms - late_ms, 0), self._dead_after_ms)
        self._check_at = time.monotonic() + left_ms / 1000
        # Removed by score, so that a worker which beats again just now stays; and later than it is
        # declared dead, when its last read is over and workers that serve other models saw it too.
        gone_ms = late_ms - BLOCK_MS
        if oldest_ms < gone_ms:
            await self._router.call(workers, "ZREMRANGEBYSCORE", workers, "-inf", f"({gone_ms}")

    async def _longest_silent(self, up_to: str, most: int) -> list[tuple[str, float]]:
        """Workers and their last beats, in server unix ms, the oldest first."""
        workers = self._keys.workers
        ask = ("ZRANGEBYSCORE", workers, "-inf", up_to, "WITHSCORES", "LIMIT", 0, most)
        try:
            found = cast(list[tuple[bytes, float]], await self._router.call(workers, *ask))
        except ReplyError:
            return []  # a key of another type in its place, until our next beat
        return [(name.decode("utf-8", "replace"), beat_ms) for name, beat_ms in found]

    async def _check_unlisted(self) -> None:
        """Hand back the requests of owners that are not listed. This reads all workers' names."""
        known = {name for name, _ in await self._longest_silent("+inf", -1)}
        missing = {
            owner for model in self._models() for owner in await self._queues.owners(model) - known
        }
        for owner in missing & self._missing:  # twice: a new worker may not be listed yet
            await self._hand_back(owner)
        self._missing = missing

    async def _hand_back(self, owner: str) -> None:
        """Hand back all requests that this worker has."""
        for model in self._models():
            count = await self._queues.hand_back_all(model, owner)
            if count:
                log.warning("worker_dead", dead=owner, model=model, requests=count)

    async def _write(self, key: str, *commands: Command) -> None:
        """Write to a key of the fleet's; delete it first where it is of another type."""
        for command in commands:
            try:
                await self._router.call(key, *command)
            except ReplyError as error:
                if not str(error).startswith("WRONGTYPE"):
                    raise
                log.warning("wrong_type_removed", key=key)
                await self._router.call(key, "DEL", key)
                await self._router.call(key, *command)
