"""Stands in for a worker: takes requests and writes audio with plain commands."""

import time
from typing import Any

from redis.asyncio import Redis

from voicefleet.schemas import Keys, ModelRecord, WorkerRecord
from voicefleet.schemas.records import encode
from voicefleet.schemas.request import Request

MODEL = "tone-test"


class FakeWorker:
    """Writes what a worker would, one entry a call. ``redis`` may be a Cluster client."""

    def __init__(self, redis: Redis | Any, prefix: str) -> None:
        self.redis = redis
        self.keys = Keys(prefix)

    async def register(self, name: str = "w1", model: str = MODEL, **record: Any) -> None:
        now = int(time.time() * 1000)
        worker = {
            "state": "ready", "host": "here", "pid": 1, "version": "0", "device": "cpu",
            "models": (model,), "slots_total": 16, "slots_free": 15, "sessions": 1,
            "first_audio_p50_ms": 12.5,
        }  # fmt: skip
        served = ModelRecord(
            family="tone", version="1", languages=("en",), voices=("a", "b"), default_voice="a",
            modes=(), capabilities=("stream",), native_rate=24000, sample_rates=(48000,),
            synthetic=True,
        )  # fmt: skip
        await self.redis.zadd(self.keys.workers, {name: now})
        await self.redis.expire(self.keys.workers, 60)
        fields = encode(WorkerRecord(**(worker | record)))
        await self.redis.hset(self.keys.worker(name), mapping=fields)
        await self.redis.expire(self.keys.worker(name), 60)
        await self.redis.hset(self.keys.model(model), mapping=encode(served))
        await self.redis.expire(self.keys.model(model), 60)

    async def take(self, model: str = MODEL) -> Request:
        """The next request, gone from the queue."""
        key = self.keys.requests(model)
        asked = ("XREAD", "BLOCK", 1000, "COUNT", 1, "STREAMS", key, "0")
        while not (reply := await self.redis.execute_command(*asked)):
            pass  # a command line takes seconds to start on a machine that others load
        ((_, ((entry, fields),)),) = reply
        await self.redis.xdel(key, entry)
        return Request.decode(entry.decode(), fields)

    async def start(self, session: str, turn: int, request: str) -> None:
        await self._add(
            session, f"{turn}-0", event="start", request=request, model=MODEL, voice="a",
            worker="w1", sample_rate=48000, frame_ms=20, format="s16le", channels=1, t=1,
        )  # fmt: skip

    async def frames(self, session: str, turn: int, first: int, last: int) -> None:
        pipeline = self.redis.pipeline(transaction=False)
        for n in range(first, last + 1):
            pipeline.execute_command(
                "XADD", self.keys.audio(session), f"{turn}-{n}", "pcm", pcm(turn, n)
            )
        await pipeline.execute()

    async def end(
        self,
        session: str,
        turn: int,
        request: str,
        frames: int,
        reason: str = "completed",
        **more: Any,
    ) -> None:
        await self._add(
            session, f"{turn}-{frames + 1}", event="end", request=request, reason=reason,
            frames=frames, t=2, **more,
        )  # fmt: skip

    async def speak(self, request: Request, turn: int, frames: int) -> None:
        await self.start(request.session, turn, request.name)
        await self.frames(request.session, turn, 1, frames)
        await self.end(request.session, turn, request.name, frames)

    async def _add(self, session: str, entry: str, **fields: Any) -> None:
        flat = [part for item in fields.items() for part in item]
        await self.redis.execute_command("XADD", self.keys.audio(session), entry, *flat)
        await self.redis.expire(self.keys.audio(session), 60)


def pcm(turn: int, n: int) -> bytes:
    return turn.to_bytes(4, "little") + n.to_bytes(4, "little") + bytes(1912)
