"""A process of callers: each makes one call after another and records what it receives.

All write through one connection; each reads through its own, blocked on its session's stream, so
that the server's cost per caller does not depend on their number. (``bench.listener`` reads a fixed
set of sessions; these come and go.)
"""

import asyncio
import gc
import multiprocessing
import resource
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection as Pipe
from multiprocessing.sharedctypes import Synchronized
from typing import Any, Final, Self, cast

import hiredis
import numpy as np

from bench.audio_stream import Kind, entries
from bench.load.call import Answer, Call, Step, gaps_ms, off_grid_ms
from bench.resp import Argument, pack
from voicefleet.schemas.keys import Keys

Script = Callable[[], Iterable[Call]]
"""Makes a caller's calls; runs in the callers' process."""

_INCOMPLETE: Final = object()
_REPORT_S: Final = 0.2
_LEAD_FRAMES: Final = 20
_JOIN_S: Final = 15.0
_spawn = multiprocessing.get_context("spawn")


class Callers:
    """Callers that run from entering the block until their scripts end or ``stop`` is called.

    Args:
        port: The server's port on loopback.
        scripts: One for each caller.
        patience_s: How long to wait for an answer. Then the call is given up, and its requests are
            recorded with the reason ``none``.
    """

    def __init__(self, port: int, scripts: Sequence[Script], patience_s: float = 60.0) -> None:
        self._stopping = _spawn.Value("b", 0, lock=True)
        self._pipe, theirs = _spawn.Pipe()
        self._process = _spawn.Process(
            target=_process,
            args=(port, list(scripts), patience_s, self._stopping, theirs),
            daemon=True,
        )
        self._theirs = theirs
        self._is_over = False
        self.cpu_share = 0.0
        """The share of one core that they used, once they have ended."""

        self.began_ns = 0
        """When they started, in ns on the monotonic clock."""

    def __enter__(self) -> Self:
        self._process.start()
        self._theirs.close()  # so that a dead process ends our reads
        self.began_ns = self._pipe.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def answers(self, wait_s: float = 0.0) -> list[Answer]:
        """The answers since the last call. Waits for some for at most ``wait_s``."""
        heard: list[Answer] = []
        while not self._is_over and self._pipe.poll(0.0 if heard else wait_s):
            message: list[Answer] | float = self._pipe.recv()
            if not isinstance(message, list):
                self.cpu_share, self._is_over = message, True
            else:
                heard += message
        return heard

    def stop(self) -> None:
        """Start no further call; present calls go on to their answers."""
        self._stopping.value = 1

    def rest(self) -> list[Answer]:
        """Wait until all callers have ended; returns the answers that were not taken yet."""
        heard: list[Answer] = []
        while not self._is_over:
            heard += self.answers(_REPORT_S)
        self._process.join(_JOIN_S)
        return heard


def _process(
    port: int,
    scripts: list[Script],
    patience_s: float,
    stopping: "Synchronized[int]",
    pipe: Pipe,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(_Exchange(port, patience_s, stopping, pipe).run(scripts))


class _Exchange:
    """All callers of the process."""

    def __init__(
        self, port: int, patience_s: float, stopping: "Synchronized[int]", pipe: Pipe
    ) -> None:
        self._port = port
        self._patience_s = patience_s
        self._stopping = stopping
        self._pipe = pipe
        self._heard: list[Answer] = []
        self._began = 0.0
        self._writer = _Connection()

    async def run(self, scripts: list[Script]) -> None:
        self._began = time.monotonic()
        self._pipe.send(time.monotonic_ns())
        gc.freeze()
        begin_cpu = time.process_time()
        self._writer = await _Connection.open(self._port)
        async with asyncio.TaskGroup() as reporters:
            reporting = reporters.create_task(self._report())
            async with asyncio.TaskGroup() as callers:
                for script in scripts:
                    callers.create_task(self._call_on(script()))
            reporting.cancel()
        self._writer.close()
        self._flush()
        elapsed = time.monotonic() - self._began
        self._pipe.send((time.process_time() - begin_cpu) / elapsed)

    async def _call_on(self, calls: Iterable[Call]) -> None:
        reader: _Connection | None = None
        try:
            for call in calls:
                await asyncio.sleep(max(0.0, self._began + call.at_s - time.monotonic()))
                if self._stopping.value:
                    return
                if reader is None:  # late: many callers start later
                    reader = await _Connection.open(self._port)
                heard = await _Caller(call, reader, self._writer).run(self._patience_s)
                self._heard += heard  # in two steps: other callers add to it meanwhile
                if not reader.is_idle:  # the call was given up during a read
                    reader.close()
                    reader = None
        finally:
            if reader is not None:
                reader.close()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_S)
            self._flush()

    def _flush(self) -> None:
        if self._heard:
            self._pipe.send(self._heard)
            self._heard = []


class _Turn:
    """One turn's frames."""

    def __init__(self) -> None:
        self.request = ""
        self.reason = ""
        self.n: list[int] = []
        self.at: list[int] = []
        self.ended_ns = 0


class _Caller:
    """One call: writes to one connection, reads from another."""

    def __init__(self, call: Call, reader: "_Connection", writer: "_Connection") -> None:
        self._call = call
        self._reader = reader
        self._writer = writer
        self._asked: dict[str, tuple[Step, int, int]] = {}
        self._turns: dict[int, _Turn] = {}
        self._answered: set[str] = set()

    async def run(self, patience_s: float) -> list[Answer]:
        longest = self._call.steps[-1].at_s + patience_s
        try:
            async with asyncio.timeout(longest), asyncio.TaskGroup() as both:
                both.create_task(self._write())
                await self._read()
        except TimeoutError:
            pass
        return [self._answer(request) for request in self._asked]

    async def _write(self) -> None:
        began = time.monotonic()
        for step in self._call.steps:
            await asyncio.sleep(max(0.0, began + step.at_s - time.monotonic()))
            command = step.command
            deadline_ns = 0
            if step.deadline_s is not None:
                deadline_ns = time.monotonic_ns() + int(step.deadline_s * 1e9)
                # Server and callers share a clock.
                unix_ms = time.time_ns() // 1_000_000 + int(step.deadline_s * 1000)
                command = (*command, "deadline_ms", unix_ms)
            if step.request is not None:
                self._asked[step.request] = (step, time.monotonic_ns(), deadline_ns)
            await self._writer.call(command)

    async def _read(self) -> None:
        stream = Keys().audio(self._call.session)
        wanted = {step.request for step in self._call.steps if step.request is not None}
        last = b"0-0"
        while not wanted <= self._answered:
            reply, at = await self._reader.call(("XREAD", "BLOCK", 0, "STREAMS", stream, last))
            for entry, (_, fields) in zip(entries(reply[0]), reply[0][1], strict=True):
                last = entry.id
                self._note(entry.turn, entry.n, entry.kind, fields, at)

    def _note(self, number: int, n: int, kind: Kind, fields: list[bytes], at: int) -> None:
        turn = self._turns.setdefault(number, _Turn())
        if kind is Kind.FRAME:
            turn.n.append(n)
            turn.at.append(at)
            return
        values = dict(zip(fields[::2], fields[1::2], strict=True))
        turn.request = values[b"request"].decode()
        if kind is Kind.END:
            turn.reason = values[b"reason"].decode()
            turn.ended_ns = at
            self._answered.add(turn.request)

    def _answer(self, request: str) -> Answer:
        step, asked_ns, deadline_ns = self._asked[request]
        turns = [turn for turn in self._turns.values() if turn.request == request]
        turn = turns[0] if turns else _Turn()
        n, at = np.array(turn.n), np.array(turn.at)
        paced = slice(_LEAD_FRAMES, None)
        grid = np.abs(off_grid_ms(n[paced], at[paced])) if len(n) > _LEAD_FRAMES else np.zeros(1)
        return Answer(
            session=self._call.session,
            request=request,
            kind=self._call.kind,
            asked_ns=asked_ns,
            first_ns=turn.at[0] if turn.at else 0,
            ended_ns=turn.ended_ns or time.monotonic_ns(),
            deadline_ns=deadline_ns,
            reason=turn.reason or "none",
            is_expected=turn.reason in step.expected,
            frames=len(turn.n),
            off_grid_ms=float(np.percentile(grid, 95, method="inverted_cdf")),
            gap_ms=float(gaps_ms(n, at).sum()) if len(n) else 0.0,
        )


class _Connection(asyncio.Protocol):
    """A connection that tells when a reply's last byte arrived."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._waiting: deque[asyncio.Future[tuple[Any, int]]] = deque()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, port: int) -> "_Connection":
        _, made = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return made

    @property
    def is_idle(self) -> bool:
        """Whether no reply is outstanding."""
        return not self._waiting

    async def call(self, command: tuple[Argument, ...]) -> tuple[Any, int]:
        """A command's reply and its arrival in monotonic ns. Raises the server's error."""
        assert self._transport is not None
        future: asyncio.Future[tuple[Any, int]] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._transport.write(pack(*command))
        return await future

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        at = time.monotonic_ns()
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not _INCOMPLETE:
            future = self._waiting.popleft()
            if future.done():  # its call was given up
                continue
            if isinstance(reply, hiredis.ReplyError):
                future.set_exception(reply)
            else:
                future.set_result((reply, at))

    def connection_lost(self, exc: Exception | None) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_exception(ConnectionError("the server closed the connection"))
        self._waiting.clear()
