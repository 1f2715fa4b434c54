"""A process of callers: each makes one call after another, and notes what it hears.

All speak over one connection; each listens on one of its own, blocked on the stream of its session:
what one hears costs the server the same however many there are. (``bench.listener`` is for sessions
that are known beforehand; these come and go.)
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
from types import TracebackType
from typing import Any, Final, Self, cast

import hiredis
import numpy as np

from bench.audio_stream import Kind, entries
from bench.load.call import Answer, Call, Step, gaps_ms, off_grid_ms
from bench.resp import Argument, pack
from voicefleet.schemas.keys import Keys

Script = Callable[[], Iterable[Call]]
"""Makes a caller's calls; it is called in the callers' process."""

_INCOMPLETE: Final = object()
_TELL_S: Final = 0.2
_LEAD_FRAMES: Final = 20
_JOIN_S: Final = 15.0
_spawn = multiprocessing.get_context("spawn")


class Callers:
    """They call from entering the block until their scripts end or ``stop`` is called.

    Args:
        port: The server's, on loopback.
        scripts: One for each caller.
        patience_s: An answer that takes longer counts as never given: the call is given up, and
            its requests are noted with the reason ``none``.
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
        """How much of one core they used, once they are through."""

        self.began_ns = 0
        """When they began, on the monotonic clock."""

    def __enter__(self) -> Self:
        self._process.start()
        self._theirs.close()  # so that a dead process ends our reads
        self.began_ns = self._pipe.recv()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    @property
    def is_over(self) -> bool:
        """Whether all callers are through and all they said was taken."""
        return self._is_over

    def answers(self, wait_s: float = 0.0) -> list[Answer]:
        """What was heard since the last time. Waits for something to be heard."""
        heard: list[Answer] = []
        while not self._is_over and self._pipe.poll(0.0 if heard else wait_s):
            said: list[Answer] | float = self._pipe.recv()
            if isinstance(said, float):
                self.cpu_share, self._is_over = said, True
            else:
                heard += said
        return heard

    def stop(self) -> None:
        """Begin no further call; calls that are on go on to their answers."""
        self._stopping.value = 1

    def rest(self) -> list[Answer]:
        """Wait for all callers to be through; returns what was not taken yet."""
        heard: list[Answer] = []
        while not self._is_over:
            heard += self.answers(_TELL_S)
        self._process.join(_JOIN_S)
        return heard


def _process(
    port: int,
    scripts: list[Script],
    patience_s: float,
    stopping: "Synchronized[int]",
    pipe: Pipe,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for our parent, who ends us
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
        self._voice = _Line()

    async def run(self, scripts: list[Script]) -> None:
        self._began = time.monotonic()
        self._pipe.send(time.monotonic_ns())
        gc.freeze()
        begin_cpu = time.process_time()
        self._voice = await _Line.open(self._port)
        async with asyncio.TaskGroup() as tellers:
            telling = tellers.create_task(self._tell())
            async with asyncio.TaskGroup() as callers:
                for script in scripts:
                    callers.create_task(self._call_on(script()))
            telling.cancel()
        self._voice.close()
        self._flush()
        elapsed = time.monotonic() - self._began
        self._pipe.send((time.process_time() - begin_cpu) / elapsed)

    async def _call_on(self, calls: Iterable[Call]) -> None:
        ear: _Line | None = None
        try:
            for call in calls:
                await asyncio.sleep(max(0.0, self._began + call.at_s - time.monotonic()))
                if self._stopping.value:
                    return
                if ear is None:  # as late as may be: many wait for their moment
                    ear = await _Line.open(self._port)
                heard = await _Caller(call, ear, self._voice).see_through(self._patience_s)
                self._heard += heard  # in two steps: others add to it while we wait
                if not ear.is_idle:  # the call was given up, and its read is on still
                    ear.close()
                    ear = None
        finally:
            if ear is not None:
                ear.close()

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(_TELL_S)
            self._flush()

    def _flush(self) -> None:
        if self._heard:
            self._pipe.send(self._heard)
            self._heard = []


class _Turn:
    """One turn's frames as they come."""

    def __init__(self) -> None:
        self.request = ""
        self.reason = ""
        self.n: list[int] = []
        self.at: list[int] = []
        self.ended_ns = 0


class _Caller:
    """One call: speaks on one line, listens on the other."""

    def __init__(self, call: Call, ear: "_Line", voice: "_Line") -> None:
        self._call = call
        self._ear = ear
        self._voice = voice
        self._asked: dict[str, tuple[Step, int, int]] = {}
        self._turns: dict[int, _Turn] = {}
        self._answered: set[str] = set()

    async def see_through(self, patience_s: float) -> list[Answer]:
        longest = self._call.steps[-1].at_s + patience_s
        try:
            async with asyncio.timeout(longest), asyncio.TaskGroup() as both:
                both.create_task(self._speak())
                await self._listen()
        except TimeoutError:
            pass
        return [self._answer(request) for request in self._asked]

    async def _speak(self) -> None:
        began = time.monotonic()
        for step in self._call.steps:
            await asyncio.sleep(max(0.0, began + step.at_s - time.monotonic()))
            command = step.command
            deadline_ns = 0
            if step.deadline_s is not None:
                deadline_ns = time.monotonic_ns() + int(step.deadline_s * 1e9)
                # Server and callers have one machine's clock.
                unix_ms = time.time_ns() // 1_000_000 + int(step.deadline_s * 1000)
                command = (*command, "deadline_ms", unix_ms)
            if step.request is not None:
                self._asked[step.request] = (step, time.monotonic_ns(), deadline_ns)
            await self._voice.call(command)

    async def _listen(self) -> None:
        stream = Keys().audio(self._call.session)
        wanted = {step.request for step in self._call.steps if step.request is not None}
        last = b"0-0"
        while not wanted <= self._answered:
            reply, at = await self._ear.call(("XREAD", "BLOCK", 0, "STREAMS", stream, last))
            for entry, (_, fields) in zip(entries(reply[0]), reply[0][1], strict=True):
                last = entry.id
                self._note(entry.turn, entry.n, entry.kind, fields, at)

    def _note(self, number: int, n: int, kind: Kind, fields: list[bytes], at: int) -> None:
        turn = self._turns.setdefault(number, _Turn())
        if kind is Kind.FRAME:
            turn.n.append(n)
            turn.at.append(at)
            return
        said = dict(zip(fields[::2], fields[1::2], strict=True))
        turn.request = said[b"request"].decode()
        if kind is Kind.END:
            turn.reason = said[b"reason"].decode()
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


class _Line(asyncio.Protocol):
    """A connection that says when a reply's last byte was here."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._waiting: deque[asyncio.Future[tuple[Any, int]]] = deque()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, port: int) -> "_Line":
        _, line = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return line

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
