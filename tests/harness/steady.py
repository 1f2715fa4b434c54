"""One worker for all tests of a module, which has to survive whatever is written to Redis::

async with steady(url) as fleet:
    await fleet.refuse("s1", "speed", speed=9)
    await fleet.goes_on()
"""

import itertools
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from redis.asyncio import Redis, from_url
from structlog.testing import capture_logs
from structlog.typing import EventDict

from tests.harness.fleet import HANG_S, Heard, Orchestrator, serving
from tests.harness.key_leaks import KeyLeaks

SECRET = "open sesame"
"""Part of every text that is sent: it must not appear in any error or log line."""

TEXT = f"One two, {SECRET}."
ANSWER_S = 1.0
TIMES: dict[str, Any] = {
    "heartbeat_ms": 50,
    "dead_after_ms": 3000,
    "lead_ms": 0,
    "text_timeout_s": 0.3,
}


class Steady(Orchestrator):
    """A raw orchestrator and its worker, ``w1``. ``logs`` holds the worker's log events."""

    def __init__(self, redis: Redis, prefix: str, logs: list[EventDict]) -> None:
        super().__init__(redis, prefix)
        self.logs = logs
        self._counter = itertools.count(1)

    def new_session(self) -> str:
        """A session that no test has used before."""
        return f"s{next(self._counter)}"

    async def put(self, **fields: object) -> str:
        """Add a request with these fields alone; return the entry's id."""
        raw: Any = {k: v for k, v in fields.items() if v is not None}
        return (await self.redis.xadd(self.keys.requests(self.model), raw)).decode()

    async def refuse(self, session: str, complaint: str, **fields: object) -> Heard:
        """Send a request that is rejected, in an idle session, and return the answer.

        Checks that the answer comes within a second, as the session's next turn, with an error that
        begins with ``complaint``; that the request leaves the queue; and its dead letter.
        """
        newest = await self.redis.xrevrange(self.keys.audio(session), count=1)
        turn = int(newest[0][0].split(b"-")[0]) + 1 if newest else 1
        begun = time.monotonic()
        entry = await self.put(session=session, **fields)
        heard = await self.hear(session, turn)
        assert heard.arrivals[-1] - begun <= ANSWER_S
        assert (heard.start, heard.end.reason) == (None, "rejected")
        error = heard.end.error or ""
        assert error.startswith(complaint)
        await self.settled()
        letter = (await self.dead())[-1]
        assert letter == {
            "model": self.model,
            "entry": entry,
            "session": session,
            "request": heard.end.request,
            "reason": "rejected",
            "error": error,
            "worker": "w1",
        }
        return heard

    async def dead_letter(self, entry: str, *, within_s: float = ANSWER_S) -> dict[str, str]:
        """Wait for the dead letter of a request that cannot be answered in a session."""
        begun = time.monotonic()
        with anyio.fail_after(HANG_S):
            while not (found := [one for one in await self.dead() if one["entry"] == entry]):
                await anyio.sleep(0.01)
        assert time.monotonic() - begun <= within_s
        (letter,) = found
        return letter

    async def goes_on(self) -> None:
        """Check that the worker speaks, has no request left, and has not logged any text."""
        session = self.new_session()
        await self.add(session, TEXT)
        heard = await self.hear(session)
        assert heard.end.reason == "completed"
        assert heard.samples.any()
        await self.settled()
        pending = await self.redis.xpending(self.keys.requests(self.model), "workers")
        assert pending["pending"] == 0
        with anyio.fail_after(HANG_S):
            while not await self._is_idle():
                await anyio.sleep(0.01)
        assert SECRET not in repr(self.logs)
        if await self.redis.type(self.keys.dead) == b"stream":
            assert SECRET not in repr(await self.dead())

    async def _is_idle(self) -> bool:
        record = await self.worker("w1")
        free, total = record.get("slots_free"), record.get("slots_total")
        return free == total and record["state"] == "ready"


@asynccontextmanager
async def steady(url: str, **worker: Any) -> AsyncGenerator[Steady]:
    """Run a worker under its own prefix. Afterwards, no key may be left without a TTL."""
    leaks = KeyLeaks(f"t{secrets.token_hex(5)}")
    leaks.watch(url)
    try:
        with capture_logs() as logs:
            async with from_url(url) as redis, serving(url, leaks.prefix, **(TIMES | worker)):
                yield Steady(redis, leaks.prefix, logs)
    finally:
        left = leaks.sweep()
    assert not left, f"left without a TTL: {left}"
