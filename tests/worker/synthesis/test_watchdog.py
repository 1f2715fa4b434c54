"""The watchdog stops an engine that makes no audio; not one that waits for text or a reader."""

from collections.abc import AsyncGenerator

import anyio
import pytest

from tests.harness.fleet import HANG_S
from voicefleet.worker.engines.protocol import Segment
from voicefleet.worker.synthesis.watchdog import EngineStalledError, Watchdog

pytestmark = pytest.mark.anyio

LIMIT_S = 0.05
LONG_S = 6 * LIMIT_S


async def segments(pause_s: float = 0.0) -> AsyncGenerator[Segment]:
    for index in range(2):
        await anyio.sleep(pause_s)
        yield Segment(index, "Go.", 0, 3)


async def test_an_engine_that_makes_no_audio_stalls() -> None:
    watchdog = Watchdog(LIMIT_S)
    words = r"no audio for 0\.05 s"
    with (
        anyio.fail_after(HANG_S),
        pytest.raises(EngineStalledError, match=words),
        watchdog.watching(),
    ):
        watchdog.begin()
        await anyio.sleep(HANG_S)


async def test_an_engine_that_makes_audio_now_and_then_does_not_stall() -> None:
    watchdog = Watchdog(10 * LIMIT_S)
    with watchdog.watching():
        for _ in range(6):
            watchdog.begin()
            await anyio.sleep(3 * LIMIT_S)
            watchdog.end()


async def test_an_engine_that_waits_for_text_does_not_stall() -> None:
    watchdog = Watchdog(LIMIT_S)
    with watchdog.watching():
        watchdog.begin()
        assert [one.index async for one in watchdog.reading(segments(LONG_S))] == [0, 1]
        watchdog.end()


async def test_an_engine_that_read_ahead_does_not_stall_while_nobody_asks_for_audio() -> None:
    watchdog = Watchdog(LIMIT_S)
    with watchdog.watching():
        watchdog.begin()
        watchdog.end()
        assert len([one async for one in watchdog.reading(segments())]) == 2
        await anyio.sleep(LONG_S)


async def test_an_engine_that_has_read_all_its_text_can_stall() -> None:
    watchdog = Watchdog(LIMIT_S)
    with anyio.fail_after(HANG_S), pytest.raises(EngineStalledError), watchdog.watching():
        watchdog.begin()
        async for _ in watchdog.reading(segments(LONG_S)):
            pass
        await anyio.sleep(HANG_S)


async def test_an_infinite_limit_never_stops_the_engine() -> None:
    watchdog = Watchdog(float("inf"))
    with watchdog.watching():
        watchdog.begin()
        await anyio.sleep(LIMIT_S)
