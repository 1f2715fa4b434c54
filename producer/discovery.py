"""Which workers are in the fleet, which models they serve, and what they can take on."""

import logging
from collections.abc import AsyncGenerator

import msgspec

from voicefleet.producer.redis_client import RedisClient
from voicefleet.schemas import FieldError, Keys, ModelRecord, SessionRecord, WorkerRecord
from voicefleet.schemas.records import decode

logger = logging.getLogger("voicefleet.producer")


class Worker(msgspec.Struct, frozen=True):
    """A live worker."""

    name: str
    record: WorkerRecord


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What the ready workers offer for one model.

    A worker's slots are shared by all models it serves. ``requests`` counts those of the model that
    wait or are being spoken.
    """

    workers: int
    slots_total: int
    slots_free: int
    requests: int


class Discovery:
    """Reads the fleet's records under one prefix. Records that cannot be read are passed over."""

    def __init__(self, redis: RedisClient, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def workers(self) -> list[Worker]:
        """All live workers, by name."""
        raw = await self._redis.call("ZRANGE", self._keys.workers, 0, -1)
        names = sorted(name.decode("utf-8", "replace") for name in raw)
        hashes = await self._redis.hashes([self._keys.worker(name) for name in names])
        found: list[Worker] = []
        for name, fields in zip(names, hashes, strict=True):
            if fields:  # a name without a record is a dead worker, not yet removed
                try:
                    found.append(Worker(name, decode(WorkerRecord, fields)))
                except FieldError as error:
                    logger.warning("worker %s: %s", name, error)
        return found

    async def models(self) -> dict[str, ModelRecord]:
        """All models that live workers serve."""
        served = sorted({m for worker in await self.workers() for m in worker.record.models})
        hashes = await self._redis.hashes([self._keys.model(model) for model in served])
        found: dict[str, ModelRecord] = {}
        for model, fields in zip(served, hashes, strict=True):
            if fields:
                try:
                    found[model] = decode(ModelRecord, fields)
                except FieldError as error:
                    logger.warning("model %s: %s", model, error)
        return found

    async def capacity(self, model: str) -> Capacity:
        """Slots of the ready workers that serve ``model``, and how many requests it has."""
        ready = [
            worker.record
            for worker in await self.workers()
            if worker.record.state == "ready" and model in worker.record.models
        ]
        return Capacity(
            workers=len(ready),
            slots_total=sum(record.slots_total for record in ready),
            slots_free=sum(record.slots_free for record in ready),
            requests=await self._redis.call("XLEN", self._keys.requests(model)),
        )

    async def sessions(self) -> AsyncGenerator[tuple[str, SessionRecord]]:
        """Every session that has a record, in no order. It walks the keys with SCAN."""
        before, after = self._keys.session("\0").split("\0")
        seen: set[str] = set()
        pattern = "".join(f"\\{c}" if c in "*?[]\\" else c for c in before) + "*" + after
        async for key in self._redis.scan(pattern):
            if key in seen:
                continue
            seen.add(key)
            fields = await self._redis.hash(key)
            if fields:
                try:
                    record = decode(SessionRecord, fields)
                except FieldError as error:
                    logger.warning("%s: %s", key, error)
                    continue
                yield key.removeprefix(before).removesuffix(after), record
