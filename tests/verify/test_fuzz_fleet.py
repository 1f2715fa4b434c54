"""Malformed input for a running worker, and for a client of a hostile worker."""

import os
from collections.abc import AsyncGenerator
from random import Random
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

from tests.harness.fleet import HANG_S
from tests.harness.steady import TEXT, Steady, steady
from verify.fuzz.live import BATCH, LIVE, Onslaught, open_files, resident_mb
from verify.fuzz.mutators import NUMBERS, spoil_fields
from voicefleet import VoiceFleet, VoiceFleetError
from voicefleet.schemas.keys import Keys

pytestmark = pytest.mark.anyio

SEED = int(os.environ.get("VOICEFLEET_TEST_FUZZ_SEED", "1"))
BATCHES = 5
GROWTH_MB = 24.0


@pytest.fixture(scope="module")
async def fleet(module_url: str) -> AsyncGenerator[Steady]:
    async with steady(module_url, **LIVE) as fleet:
        yield fleet


async def test_a_worker_goes_on(fleet: Steady) -> None:
    onslaught = Onslaught(fleet, SEED)
    memory, files = 0.0, 0
    for number in range(BATCHES):
        await onslaught.batch(number * BATCH, BATCH)
        if number == 1:
            memory, files = resident_mb(), open_files()
    assert resident_mb() - memory <= GROWTH_MB
    # The pool of the test's own client has a connection for each session of a batch.
    assert open_files() - files <= BATCH


LEASES: dict[str, dict[str, str]] = {
    "an epoch of 5000 digits": {"epoch": "9" * 5000},
    "an epoch that cannot grow": {"epoch": "1e308"},
    "no number for an epoch": {"epoch": "nan"},
    "resume points that are none": {"resume": "\0", "active": "1", "entry": "1-1", "model": "m"},
    "a turn that nobody can name": {"active": "1"},
    "a turn without a queue": {"active": "1", "model": "0x10"},
    "a request that waits and is gone": {"w:1-1:m": ".x"},
}


@pytest.mark.parametrize("what", LEASES)
async def test_debris_in_a_lease_holds_nobody_up(fleet: Steady, what: str) -> None:
    session, key = fleet.new_session(), ""
    key = fleet.keys.lease(session)
    await fleet.redis.hset(key, mapping=LEASES[what])
    await fleet.redis.pexpire(key, 30_000)
    await fleet.add(session, TEXT)
    assert (await fleet.hear(session, timeout_s=HANG_S)).end.reason == "completed"


async def test_an_owner_that_is_no_text(module_url: str) -> None:
    async with steady(module_url, **LIVE) as fleet:
        key = fleet.keys.lease("s")
        owner: Any = {"active": "1", "owner": b"\xff"}
        await fleet.redis.hset(key, mapping=owner)
        try:
            await fleet.add("s", TEXT)
            assert (await fleet.hear("s", timeout_s=HANG_S)).end.reason == "completed"
        finally:
            await fleet.redis.delete(key)
            await fleet.settled()


async def test_a_text_stream_that_has_used_its_last_id_ends_like_any_other(fleet: Steady) -> None:
    session = fleet.new_session()
    key = fleet.keys.text(session, "r")
    piece: Any = {"text": TEXT, "end": "1"}
    await fleet.redis.xadd(key, piece, id=f"{2**64 - 1}-{2**64 - 1}")
    await fleet.redis.expire(key, 60)
    entry = await fleet.add(session, request="r", stream=1)
    assert (await fleet.hear(session)).end.reason == "completed"
    await fleet.settled()
    ttl = await fleet.redis.ttl(fleet.keys.audio(session))
    await fleet.redis.delete(fleet.keys.audio(session))
    assert ttl > 0
    assert not [letter for letter in await fleet.dead() if letter["entry"] == entry]


class TestClient:
    """What a hostile worker writes raises the client's own errors, or is skipped."""

    async def test_an_audio_stream(self, redis: Redis, redis_url: str, prefix: str) -> None:
        rng, keys, client = Random(f"audio {SEED}"), Keys(prefix), redis
        seeds: list[dict[bytes, bytes]] = [
            {b"event": b"start", b"request": b"r", b"model": b"m", b"voice": b"v"},
            {b"pcm": b"\0" * 1920, b"text": b"x"},
            {b"event": b"end", b"request": b"r", b"reason": b"completed", b"frames": b"1"},
        ]
        raw: Any = client
        async with VoiceFleet(redis_url, prefix=prefix) as fleet:
            for number in range(60):
                session = f"s{number}"
                for n in range(rng.choice((1, 2, 4))):
                    fields = spoil_fields(rng, seeds, [b"end", b"start"]) or {b"": b""}
                    await raw.xadd(keys.audio(session), fields, id=f"{1 + n // 2}-{n}")
                await raw.expire(keys.audio(session), 60)
                with anyio.move_on_after(0.05), anyio.fail_after(HANG_S):
                    try:
                        async for _ in fleet.session(session).listen(after="0-0"):
                            pass
                    except VoiceFleetError:
                        pass
            # One who listens elsewhere is not disturbed.
            key = keys.audio("calm")
            await raw.xadd(key, seeds[0] | {b"sample_rate": b"48000"}, id="1-0")
            await raw.expire(key, 60)
            with anyio.fail_after(HANG_S):
                async for entry in fleet.session("calm").listen(after="0-0"):
                    assert entry.id.turn == 1
                    break

    async def test_records(self, redis: Redis, redis_url: str, prefix: str) -> None:
        rng, keys = Random(f"records {SEED}"), Keys(prefix)
        raw: Any = redis
        worker: dict[bytes, bytes] = {
            **{
                b"state": b"ready",
                b"host": b"h",
                b"pid": b"1",
                b"version": b"0",
                b"device": b"cpu",
            },
            **{b"models": b"m", b"slots_total": b"4", b"slots_free": b"4", b"sessions": b"0"},
        }
        words = [number.encode() for number in NUMBERS]
        try:
            for number in range(60):
                key = keys.worker(f"w{number}")
                await raw.zadd(keys.workers, {f"w{number}": 1})
                await raw.hset(key, mapping=spoil_fields(rng, [worker], words) or {b"": b""})
                await raw.expire(key, 60)
                session = keys.session(f"s{number}")
                await raw.hset(session, mapping=spoil_fields(rng, [worker], words) or {b"": b""})
                await raw.expire(session, 60)
            await raw.set(keys.model("m"), "debris", ex=60)
            async with VoiceFleet(redis_url, prefix=prefix) as fleet:
                assert await fleet.workers()
                for ask in (fleet.models, lambda: fleet.capacity("m")):
                    try:
                        await ask()
                    except VoiceFleetError:
                        continue
        finally:
            await raw.delete(keys.workers)
