"""What docs/protocol.md says is forgotten: wishes whose time to live runs out, and old names."""

import anyio
import pytest

from tests.harness.fleet import Orchestrator, serving

pytestmark = pytest.mark.anyio

TEXT = "One two three four five six."
TTL_MS = 300


async def test_a_paused_session_speaks_on(fleet: Orchestrator, redis_url: str, prefix: str) -> None:
    async with serving(redis_url, prefix):
        await fleet.redis.set(fleet.keys.control("s"), "pause", px=TTL_MS)
        await fleet.add("s", TEXT, request="r1")
        heard = await fleet.hear("s")
    assert heard.end.reason == "completed" and heard.frames
    assert await fleet.redis.get(fleet.keys.control("s")) is None


async def test_what_is_added_after_a_stop_lapsed_is_spoken(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix):
        await fleet.redis.set(fleet.keys.control("s"), "stop", px=TTL_MS)
        await fleet.add("s", TEXT, request="r1")
        assert (await fleet.hear("s", 1)).end.reason == "stopped"
        while await fleet.redis.exists(fleet.keys.control("s")):
            await anyio.sleep(0.02)
        await fleet.add("s", TEXT, request="r2")
        assert (await fleet.hear("s", 2)).end.reason == "completed"


async def test_the_newest_names_of_a_session_are_remembered(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix):
        await fleet.add("s", TEXT, request="old", lead_ms=0)
        await fleet.hear("s", 1)
        spoken = fleet.keys.spoken("s")
        newer = {f"n{index}": 2 for index in range(1024)}
        await fleet.redis.zadd(spoken, newer)
        await fleet.add("s", TEXT, request="n5", lead_ms=0)
        await fleet.add("s", TEXT, request="next", lead_ms=0)
        assert (await fleet.hear("s", 2)).end.request == "next"
        await fleet.add("s", TEXT, request="old", lead_ms=0)
        assert (await fleet.hear("s", 3)).end.request == "old"
