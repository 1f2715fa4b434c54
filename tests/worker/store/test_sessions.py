"""Calls on a session's keys, where the scripts alone do not show it."""

import anyio
import pytest
from anyio.lowlevel import checkpoint
from redis.asyncio import Redis

from tests.harness.fleet import Orchestrator
from voicefleet.schemas.keys import Keys
from voicefleet.schemas.request import Request
from voicefleet.wire.connect import connect
from voicefleet.wire.endpoint import RedisConfig, resolve
from voicefleet.wire.router import Router
from voicefleet.worker.store.lease_states import Claim, Standing
from voicefleet.worker.store.queues import Delivery, QueueStore
from voicefleet.worker.store.sessions import SessionStore

pytestmark = pytest.mark.anyio

LIMITS = {"most": 1, "conversation_s": 30.0}


async def test_a_rejection_that_is_cancelled_has_its_dead_letter(
    fleet: Orchestrator, redis: Redis, redis_url: str, prefix: str
) -> None:
    """Wherever the caller is cancelled: it is rejected with a dead letter, or not at all."""
    keys = Keys(prefix)
    async with connect(resolve(RedisConfig(url=redis_url, prefix=prefix))) as topology:
        router = Router(topology)
        queues = QueueStore(router, keys, "w1")
        sessions = SessionStore(router, keys, "w1", 20_000, queues)
        rejected: set[str] = set()
        for turns in range(12):
            session = f"s{turns}"
            first, second = [
                Delivery(
                    fleet.model, await fleet.add(session, "Go.", request=name), {}, Claim.FRESH
                )
                for name in ("first", "second")
            ]
            request = Request(session=session, request="first", text="Go.")
            enqueued = await sessions.enqueue(first, request, **LIMITS)
            assert enqueued.standing is Standing.WAITING
            async with anyio.create_task_group() as tasks:
                request = Request(session=session, request="second", text="Go.")
                tasks.start_soon(lambda r=request, d=second: sessions.enqueue(d, r, **LIMITS))
                for _ in range(turns):
                    await checkpoint()
                tasks.cancel_scope.cancel()
            if await redis.exists(keys.refused(session)):
                rejected.add(session)
        router.close()
    assert rejected
    letters = [fields[b"session"].decode() for _, fields in await redis.xrange(keys.dead)]
    assert sorted(letters) == sorted(rejected)
    await redis.expire(keys.dead, 5)
