"""What is listed can be copied: nothing is cut and no line broken, on no terminal."""

import pytest
from redis.asyncio import Redis

from tests.harness.cli_process import Terminal, rest_of, running
from tests.producer.fake_worker import MODEL, FakeWorker

pytestmark = pytest.mark.anyio

SESSION, REQUEST = "acme:call-" + "0123456789" * 9, "request-" + "abcdef" * 10
WORKER = "4711@a-host-whose-name-is-rather-long.region.cloud.example.com"


@pytest.fixture
async def where(redis: Redis, redis_url: str, prefix: str) -> dict[str, str]:
    worker = FakeWorker(redis, prefix)
    await worker.register(WORKER)
    key = worker.keys.session(SESSION)
    state = {"state": "speaking", "turn": 3, "request": REQUEST, "worker": WORKER, "model": MODEL}
    await redis.hset(key, mapping=state)
    await redis.expire(key, 60)
    return {"VOICEFLEET_REDIS_URL": redis_url, "VOICEFLEET_REDIS_PREFIX": prefix}


@pytest.mark.parametrize("columns", [40, 80, 160])
async def test_ids_are_whole_on_a_terminal(where: dict[str, str], columns: int) -> None:
    for command, ids in (("sessions", (SESSION, REQUEST, WORKER)), ("workers", (WORKER,))):
        terminal = Terminal(columns)
        async with running(command, stdout=terminal.theirs, TERM="xterm", **where) as process:
            assert await process.wait() == 0
            output = await terminal.rest()
        words = output.split()
        assert all(words.count(word) == 1 for word in ids), output
        assert "…" not in output


async def test_what_fits_a_terminal_is_a_table(where: dict[str, str]) -> None:
    terminal = Terminal(400)
    async with running("sessions", stdout=terminal.theirs, TERM="xterm", **where) as process:
        assert await process.wait() == 0
        output = await terminal.rest()
    (row,) = (line for line in output.splitlines() if SESSION in line)
    assert REQUEST in row and WORKER in row


async def test_a_pipe_gets_a_row_a_line(where: dict[str, str]) -> None:
    async with running("sessions", COLUMNS="80", **where) as process:
        output = await rest_of(process.stdout)
    (row,) = (line for line in output.splitlines() if SESSION in line)
    assert REQUEST in row and WORKER in row


async def test_tail_wipes_its_live_line_before_it_prints(
    where: dict[str, str], redis: Redis, prefix: str
) -> None:
    worker = FakeWorker(redis, prefix)
    await worker.start("s1", 1, "r1")
    await worker.frames("s1", 1, 1, 3)
    await worker.end("s1", 1, "r1", 3)
    terminal = Terminal(40)
    both = {"stdout": terminal.theirs, "stderr": terminal.theirs}
    args = ("tail", "s1", "--all", "--turns", "1")
    async with running(*args, **both, TERM="xterm", **where) as process:
        assert await process.wait() == 0
        output = await terminal.rest()
    # The rows as the terminal shows them.
    rows = [row.rpartition("\x1b[2K")[2] for row in output.split("\r\n")]
    assert [row.split()[:2] for row in rows] == [["1-0", "start"], ["1-4", "end"], []]
    assert output.count("\x1b[2K") >= 2
