"""An engine that makes no audio, told from one that waits for text and from a reader that waits."""

from collections.abc import AsyncGenerator

import anyio
import pytest

from tests.harness.fleet import HANG_S
from voicefleet.worker.engines.protocol import Segment
from voicefleet.worker.synthesis.watchdog import EngineStalledError, Stall

pytestmark = pytest.mark.anyio

LIMIT_S = 0.05
LONG_S = 6 * LIMIT_S


async def segments(pause_s: float = 0.0) -> AsyncGenerator[Segment]:
    for index in range(2):
        await anyio.sleep(pause_s)
        yield Segment(index, "Go.", 0, 3)


async def test_an_engine_that_is_asked_and_gives_nothing_stalls() -> None:
    stall = Stall(LIMIT_S)
    words = r"no audio for 0\.05 s"
    with anyio.fail_after(HANG_S), pytest.raises(EngineStalledError, match=words), stall.watched():
        stall.begin()
        await anyio.sleep(HANG_S)


async def test_one_that_gives_some_now_and_then_does_not() -> None:
    stall = Stall(10 * LIMIT_S)
    with stall.watched():
        for _ in range(6):
            stall.begin()
            await anyio.sleep(3 * LIMIT_S)
            stall.end()


async def test_nor_one_that_waits_for_text() -> None:
    stall = Stall(LIMIT_S)
    with stall.watched():
        stall.begin()
        assert [one.index async for one in stall.reading(segments(LONG_S))] == [0, 1]
        stall.end()


async def test_nor_one_whose_reader_is_paused_while_it_has_read_ahead() -> None:
    stall = Stall(LIMIT_S)
    with stall.watched():
        stall.begin()
        stall.end()
        assert len([one async for one in stall.reading(segments())]) == 2
        await anyio.sleep(LONG_S)


async def test_after_all_text_was_read_it_is_at_work_again() -> None:
    stall = Stall(LIMIT_S)
    with anyio.fail_after(HANG_S), pytest.raises(EngineStalledError), stall.watched():
        stall.begin()
        async for _ in stall.reading(segments(LONG_S)):
            pass
        await anyio.sleep(HANG_S)


async def test_without_a_limit_nothing_is_watched() -> None:
    stall = Stall(float("inf"))
    with stall.watched():
        stall.begin()
        await anyio.sleep(LIMIT_S)
