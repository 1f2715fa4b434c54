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

from voicefleet.schemas import records
from voicefleet.schemas.keys import Keys
from voicefleet.schemas.records import ModelRecord, WorkerRecord
from voicefleet.wire.link import Command, ReplyError
from voicefleet.wire.router import Router
from voicefleet.worker.config.sections import WorkerConfig
from voicefleet.worker.intake.queue_reader import BLOCK_MS
from voicefleet.worker.store import scripts
from voicefleet.worker.store.clock import ServerClock
from voicefleet.worker.store.ledger import Ledger

log = structlog.stdlib.get_logger(__name__)


LOOK_AROUND_BEATS = 10
"""Beats between two looks at all workers: what each of them does at each beat is quadratic."""

ALL_ANEW_S = 10.0
"""Records that say what they said are renewed, and written anew so often: others write them too."""

MOST_RECORD_MS = 3000
"""So long after its worker a record is there at most."""

OLDEST = 16
"""So many are looked at, of those that have not beaten for the longest time."""


class NameTakenError(Exception):
    """A living worker has this name."""


class Heartbeat:
    """Beats for one worker, in server time, and buries dead ones.

    It beats on the worker's event loop: a loop that stalls does not beat.

    Args:
        describe: Makes the worker's record as it is now.
        models: Makes the records of the served models.
    """

    def __init__(
        self,
        router: Router,
        keys: Keys,
        config: WorkerConfig,
        name: str,
        clock: ServerClock,
        ledger: Ledger,
        describe: Callable[[], WorkerRecord],
        models: Callable[[], Mapping[str, ModelRecord]],
    ) -> None:
        self._router = router
        self._keys = keys
        self._name = name
        self._clock = clock
        self._ledger = ledger
        self._describe = describe
        self._models = models
        self._instance = uuid.uuid4().hex[:12]
        self._interval_s = config.heartbeat_ms / 1000
        self._dead_after_ms = config.dead_after_ms
        # A record is renewed when no more is left of its time than makes a silent worker dead.
        self._ttl_ms = max(config.dead_after_ms, min(2 * config.dead_after_ms, MOST_RECORD_MS))
        self._renew_s = (self._ttl_ms - config.dead_after_ms) / 1000
        self._living_ms = max(config.dead_after_ms, int((self._renew_s + self._interval_s) * 1000))
        self._written: dict[str, str] = {}
        self._written_models: dict[str, dict[str, str]] = {}
        self._renewed_at = self._all_anew_at = -ALL_ANEW_S
        self._look_at = 0.0
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
            if await self._pulse() is None:
                raise NameTakenError(f"another worker goes by the name {self._name} now")
            await self._bury_the_dead()

    async def _pulse(self) -> int | None:
        """Show a sign of life; renew the records too where they change or run out."""
        renewed_s = time.monotonic() - self._renewed_at
        if renewed_s >= self._renew_s or self._record() != self._written:
            return await self.beat()
        now_ms = self._clock.now_ms()
        await self._list(now_ms)
        answered = time.monotonic()
        if answered - self._last_beat > 2 * self._interval_s:
            return await self.beat()  # we or the server were away: the sign may be an old one
        self._last_beat = answered
        return now_ms

    async def beat(self) -> int | None:
        """Renew the records now. Returns the server's unix ms; ``None``: the name is taken."""
        asked = time.monotonic()
        anew = asked - self._all_anew_at >= ALL_ANEW_S
        record = self._record()
        merges = not anew and record.keys() == self._written.keys()
        reply = await scripts.BEAT(
            self._router,
            [self._keys.worker(self._name)],
            self._instance,
            self._ttl_ms,
            self._living_ms,
            "1" if merges else "0",
            *(part for pair in record.items() for part in pair),
        )
        if reply is None:
            return None
        self._written = record
        now_ms = int(cast(bytes, reply))
        answered = time.monotonic()
        self._clock.set(now_ms, (answered - asked) * 1000)
        if answered - self._last_beat > 2 * self._interval_s:
            # Who was away himself cannot know whether the others were: give them time to beat.
            self._judges_from = answered + self._dead_after_ms / 1000
        self._last_beat = self._renewed_at = answered
        await self._list(now_ms)
        for model, described in self._models().items():
            await self._renew_model(model, records.encode(described), anew=anew)
        if anew:
            self._all_anew_at = answered
        return now_ms

    def _record(self) -> dict[str, str]:
        record = records.encode(self._describe())
        record.pop("beat_ms", None)
        return record

    async def _list(self, now_ms: int) -> None:
        await self._write(self._keys.workers, ("ZADD", self._keys.workers, now_ms, self._name))

    async def _renew_model(self, model: str, record: dict[str, str], *, anew: bool) -> None:
        key = self._keys.model(model)
        renew: Command = ("PEXPIRE", key, self._ttl_ms)
        is_same = not anew and record == self._written_models.get(model)
        if is_same and await self._router.call(key, *renew):
            return
        fields = [part for pair in record.items() for part in pair]
        await self._write(key, ("HSET", key, *fields), renew)
        self._written_models[model] = record

    async def depart(self) -> None:
        """Leave the fleet in good order."""
        await scripts.DEPART(self._router, [self._keys.worker(self._name)], self._instance)
        workers = self._keys.workers
        await self._router.call(workers, "ZREM", workers, self._name)

    async def _enter(self) -> None:
        deadline = time.monotonic() + self._ttl_ms / 1000 + self._interval_s
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
        self._beats += 1
        if self._beats % LOOK_AROUND_BEATS == 0:
            await self._bury_the_unlisted()
        if time.monotonic() < self._look_at:
            return
        now_ms, workers = self._clock.now_ms(), self._keys.workers
        late_ms = now_ms - self._dead_after_ms
        listed = await self._longest_silent("+inf", OLDEST)
        if len(listed) == OLDEST and listed[-1][1] < late_ms:
            listed = await self._longest_silent(f"({late_ms}", -1)
        others = [(name, beat_ms) for name, beat_ms in listed if name != self._name]
        # At each beat: a read of one that is stalled may be answered after its burial.
        for owner, beat_ms in others:
            if beat_ms < late_ms:
                await self._bury(owner)
        # Nobody can be dead before the one who has been silent for the longest time.
        oldest_ms = min((beat_ms for _, beat_ms in others), default=now_ms)
        left_ms = min(max(oldest_ms - late_ms, 0), self._dead_after_ms)
        self._look_at = time.monotonic() + left_ms / 1000
        # By score, not by name: one that beats again in this moment stays. And not before the last
        # of its reads is over, and all others have seen it, who may serve other models than we do.
        gone_ms = late_ms - BLOCK_MS
        if oldest_ms < gone_ms:
            await self._router.call(workers, "ZREMRANGEBYSCORE", workers, "-inf", f"({gone_ms}")

    async def _longest_silent(self, up_to: str, most: int) -> list[tuple[str, float]]:
        """Workers, and when they beat last: server unix ms."""
        workers = self._keys.workers
        ask = ("ZRANGEBYSCORE", workers, "-inf", up_to, "WITHSCORES", "LIMIT", 0, most)
        try:
            found = cast(list[tuple[bytes, float]], await self._router.call(workers, *ask))
        except ReplyError:
            return []  # something else in its place, until our next beat
        return [(name.decode("utf-8", "replace"), beat_ms) for name, beat_ms in found]

    async def _bury_the_unlisted(self) -> None:
        """Hand back the requests of those whom nobody knows. It costs more: each worker is read."""
        known = {name for name, _ in await self._longest_silent("+inf", -1)}
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

    async def _write(self, key: str, *commands: Command) -> None:
        """Write to a key of ours. What is of another type under its name is debris."""
        for command in commands:
            try:
                await self._router.call(key, *command)
            except ReplyError as error:
                if not str(error).startswith("WRONGTYPE"):
                    raise
                log.warning("wrong_type_removed", key=key)
                await self._router.call(key, "DEL", key)
                await self._router.call(key, *command)
