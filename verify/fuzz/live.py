"""Malformed input for a running worker: what any client of its Redis could write.

    async with steady(url, **LIVE) as fleet:
        await Onslaught(fleet, seed=1).batch(0, 50)

Each input is a session of its own: a request or several, text pieces, control values, and debris in
the session's keys, written before, between and after. Afterwards every request that can be read has
its one end, or a dead letter where the session's own keys were spoilt, and the worker goes on.
"""

import gc
import itertools
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, Final

import anyio
from redis.exceptions import ResponseError

from tests.harness.fleet import HANG_S
from tests.harness.steady import SECRET, Steady, steady
from verify.fuzz.campaign import Find, Report
from verify.fuzz.mutators import BROKEN_UTF8, NUMBERS, spoil, spoil_fields
from verify.fuzz.of_protocol import REQUESTS, WORDS
from voicefleet.embedded_server import EmbeddedServer
from voicefleet.schemas.audio import End, decode
from voicefleet.schemas.fields import SESSION

LIVE: Final[dict[str, Any]] = {"text_timeout_s": 0.2, "audio_ttl_s": 5.0, "slots": 8}
"""Beside ``tests.harness.steady.TIMES``: everything is over soon."""

BATCH: Final = 50
A_WORKER: Final = 1000

_TTL_MS: Final = 30_000
_RESIDENT: Final = re.compile(r"VmRSS:\s+(\d+) kB")


class Onslaught:
    """Inputs for one worker, in batches. ``sent`` counts them."""

    def __init__(self, fleet: Steady, seed: int) -> None:
        self._fleet = fleet
        self._seed = seed
        self.sent = 0

    async def batch(self, first: int, count: int) -> None:
        """Send the inputs from number ``first`` on, and wait for their answers."""
        async with anyio.create_task_group() as tasks:
            for number in range(first, first + count):
                tasks.start_soon(self._input, number)
        self.sent += count
        await self._fleet.goes_on()
        self._check_logs()

    def _check_logs(self) -> None:
        """No programming error is logged, and no text."""
        logs, bad = self._fleet.logs, ("error", "critical")
        wrong = [line for line in logs if line["log_level"] in bad or "exc_info" in line]
        logs.clear()
        assert not wrong, f"{len(wrong)} errors were logged: {wrong[0]}"

    # One input: a session.

    async def _input(self, number: int) -> None:
        rng = Random(f"live {self._seed} {number}")
        session = f"f{self._seed}.{number}"
        try:
            await self._act(rng, session)
        except (AssertionError, TimeoutError) as error:
            error.add_note(f"live input: seed {self._seed}, number {number}")
            raise

    async def _act(self, rng: Random, session: str) -> None:
        spoilt = rng.random() < 0.4
        if spoilt:
            await self._spoil_keys(rng, session)
        sent: list[tuple[str, dict[bytes, bytes]]] = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            fields = self._request(rng, session)
            queue = self._fleet.keys.requests(self._fleet.model)
            entry: bytes = await self._fleet.redis.xadd(queue, fields)
            sent.append((entry.decode(), fields))
            await self._write_text(rng, session, sent[-1])
            if rng.random() < 0.3:
                await self._control(rng, session)
            if spoilt and rng.random() < 0.5:
                await self._spoil_keys(rng, session)
        await self._let_go(session)
        if spoilt:
            await self._settled({entry for entry, _ in sent})
        else:
            await self._answered(session, sent)

    def _request(self, rng: Random, session: str) -> dict[bytes, bytes]:
        own: dict[bytes, bytes] = {b"session": session.encode(), b"lead_ms": b"0"}
        fields = {**_secret_in_text(spoil_fields(rng, REQUESTS, (*WORDS, *BROKEN_UTF8))), **own}
        if rng.random() < 0.05:
            fields[b"session"] = spoil(rng, [session.encode(), b""], BROKEN_UTF8)
        if len(fields.get(b"text", b"")) > 500 and rng.random() < 0.9:
            fields[b"text"] = fields[b"text"][:500]  # or it is spoken for minutes
        return fields

    async def _write_text(
        self, rng: Random, session: str, sent: tuple[str, Mapping[bytes, bytes]]
    ) -> None:
        name = turn_name(*sent)
        if sent[1].get(b"stream") != b"1" or not SESSION.fullmatch(name):
            return
        key = self._fleet.keys.text(session, name)
        seeds = [{b"text": SECRET.encode()}, {b"flush": b"1"}, {b"text": b"And on.", b"end": b"1"}]
        for _ in range(rng.choice((0, 1, 3))):
            entry = rng.choice(("*", "*", "*", "*", "0-1", f"{2**64 - 1}-7"))
            piece = _secret_in_text(spoil_fields(rng, seeds, BROKEN_UTF8)) or {b"": b""}
            await self._try("XADD", key, entry, *itertools.chain(*piece.items()))
        await self._try("PEXPIRE", key, _TTL_MS)

    async def _control(self, rng: Random, session: str) -> None:
        wishes = [b"pause", b"resume", b"stop", b"stop:r1", b"stop:", b"\xff"]
        value = spoil(rng, wishes, largest=2**16) if rng.random() < 0.5 else rng.choice(wishes)
        await self._try("SET", self._fleet.keys.control(session), value, "PX", _TTL_MS)

    async def _let_go(self, session: str) -> None:
        """Clear control keys, so that no session stays paused."""
        await self._try("SET", self._fleet.keys.control(session), "resume", "PX", _TTL_MS)

    async def _spoil_keys(self, rng: Random, session: str) -> None:
        """Replace keys by other types, or by malformed values of the right type."""
        keys = self._fleet.keys
        kinds = [keys.lease(session), keys.spoken(session), keys.session(session)]
        kinds += [keys.control(session), keys.text(session, "r1")]
        if rng.random() < 0.3:
            kinds.append(keys.audio(session))
        for key in rng.sample(kinds, rng.choice((1, 1, 2))):
            await self._debris(rng, key)
            await self._try("PEXPIRE", key, _TTL_MS)

    async def _debris(self, rng: Random, key: str) -> None:
        value = rng.choice((*(number.encode() for number in NUMBERS), *BROKEN_UTF8, b"x" * 5000))
        match rng.randrange(7):
            case 0:
                await self._try("SET", key, value)
            case 1:
                await self._try("DEL", key)
                await self._try("RPUSH", key, value)
            case 2:
                for _ in range(3):
                    await self._try("ZADD", key, rng.choice(("inf", "-inf", "1e308", "0")), value)
            case 3:
                entry = rng.choice(("*", "1-0", "7-3", f"{2**53 + 1}-1", f"{2**64 - 1}-5"))
                fields = rng.choice(((b"event", b"end"), (b"event", b"start"), (b"pcm", value)))
                await self._try("XADD", key, entry, *fields)
            case _:
                names = (
                    *(b"epoch", b"epoch", b"active", b"turn", b"attempts", b"progress", b"resume"),
                    *(b"owner", b"entry", b"model", b"w:", b"w:a-b:m", b"w:\xff", b"frames"),
                )
                for _ in range(rng.choice((1, 2, 5))):
                    field = rng.choice(names)
                    await self._try("HSET", key, field, rng.choice((value, b"1", b"0")))

    async def _try(self, *command: Any) -> None:
        """Write it; the key may refuse it."""
        with suppress(ResponseError):
            await self._fleet.redis.execute_command(*command)

    # What came of it.

    async def _answered(self, session: str, sent: list[tuple[str, dict[bytes, bytes]]]) -> None:
        """Every request with a readable session has one end and is off the queue."""
        own = [one for one in sent if one[1].get(b"session") == session.encode()]
        names = {turn_name(*one) for one in own}
        await self._settled({entry for entry, _ in sent})
        entries = await self._fleet.redis.xrange(self._fleet.keys.audio(session))
        read = [decode(*entry) for entry in entries]
        ends = [entry.request for entry in read if isinstance(entry, End)]
        assert sorted(ends) == sorted(names), f"ends {ends} for {names}"

    async def _settled(self, entries: set[str]) -> None:
        """Wait until the requests are off the queue."""
        queue = self._fleet.keys.requests(self._fleet.model)
        with anyio.fail_after(HANG_S):
            for entry in entries:
                while await self._fleet.redis.xrange(queue, entry, entry):
                    await anyio.sleep(0.02)


def turn_name(entry: str, fields: Mapping[bytes, bytes]) -> str:
    """The name that the protocol gives to a request's turn."""
    name = fields.get(b"request", b"").decode("utf-8", "replace")
    return name if SESSION.fullmatch(name) else entry


def assault(seed: int, count: int) -> Report:
    """A campaign against live workers: a new worker and server for every ``A_WORKER`` inputs."""
    report = Report(target="live", seed=seed)
    begun = time.monotonic()
    while report.inputs < count:
        last = min(count, report.inputs + A_WORKER)
        try:
            anyio.run(_assault, report, last)
        except Exception as error:
            what, detail = type(error).__name__, " ".join(_notes(error)) or ascii(str(error))
            report.finds.append(Find("live", seed, report.inputs, what, "", detail[:1000]))
            report.inputs += BATCH  # those that were under way
    report.seconds = time.monotonic() - begun
    return report


async def _assault(report: Report, last: int) -> None:
    async with EmbeddedServer.start() as server, steady(server.url, **LIVE) as fleet:
        onslaught, memory, files = Onslaught(fleet, report.seed), 0.0, 0
        while report.inputs < last:
            batch = min(BATCH, last - report.inputs)
            begun = time.monotonic()
            await onslaught.batch(report.inputs, batch)
            slowest = (time.monotonic() - begun) * 1000
            if slowest > report.slowest_ms:
                report.slowest_ms, report.slowest = slowest, report.inputs
            report.inputs += batch
            report.taken += batch
            if onslaught.sent == 2 * BATCH:
                memory, files = resident_mb(), open_files()
        if memory:
            report.growth_mb = max(report.growth_mb, resident_mb() - memory)
            more = open_files() - files
            assert more <= BATCH, f"{more} more open files"


def _notes(error: BaseException) -> list[str]:
    """The notes of an error and of the errors that it groups."""
    found: list[str] = list(getattr(error, "__notes__", ()))
    for inner in getattr(error, "exceptions", ()):
        found += _notes(inner)
    if not found and not hasattr(error, "exceptions"):
        found = [ascii(f"{type(error).__name__}: {error}")]
    return found


def _secret_in_text(fields: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Keep the secret out of all fields but the text: errors quote the others."""
    spoken, marks = (b"text", b"instruct"), re.compile(rb"open|sesame")
    return {k: v if k in spoken else marks.sub(b"", v) for k, v in fields.items()}


def resident_mb() -> float:
    """Resident memory of this process (worker and test) in MB."""
    gc.collect()
    found = _RESIDENT.search(Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def open_files() -> int:
    """How many file descriptors this process has."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
