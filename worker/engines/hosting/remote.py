"""A core in a child process, as an object on the worker's event loop."""

import asyncio
import itertools
from collections import deque
from collections.abc import Mapping
from typing import Final, Self

from voicefleet.worker.engines.hosting.messages import (
    Alive,
    Audio,
    Cancel,
    Changed,
    Consumed,
    Failed,
    Fatal,
    Loaded,
    Message,
    Open,
    Report,
    Spoken,
    Start,
    Stop,
    Warm,
    WarmUp,
)
from voicefleet.worker.engines.hosting.process import EngineProcess
from voicefleet.worker.engines.protocol import EngineError, EngineInfo, EngineLoadError, TurnSpec

CHECKS: Final = 4
"""How many times the watchdog checks within its timeout. Silence is counted in checks, not seconds,
so that time in which this process stood still does not count."""

_BYTES_PER_SAMPLE: Final = 4


class RemoteTurn:
    """One turn and its audio as it arrives. Created by ``RemoteCore.open``."""

    def __init__(self, number: int, core: "RemoteCore") -> None:
        self.number = number
        self._core = core
        self._audio: deque[Audio] = deque()
        self._spoken = False
        self._error: Exception | None = None
        self._consumed = 0
        self._arrival = asyncio.Event()

    async def next(self) -> Audio | None:
        """Wait for the next audio, which then counts as consumed; ``None`` after the last.

        Raises:
            CannotSpeakError: The engine refuses the turn.
            EngineError: The turn failed. Its undelivered audio is dropped, so that a retry can
                start at once.
        """
        while True:
            if self._error is not None:
                raise self._error
            if self._audio:
                audio = self._audio.popleft()
                self._consumed += len(audio.samples) // _BYTES_PER_SAMPLE
                self._core.send(Consumed(self.number, self._consumed))
                return audio
            if self._spoken:
                return None
            self._arrival.clear()
            await self._arrival.wait()

    def put(self, audio: Audio) -> None:
        """Add audio that arrived."""
        self._audio.append(audio)
        self._arrival.set()

    def finish(self) -> None:
        """Take note that all audio has arrived."""
        self._spoken = True
        self._arrival.set()

    def fail(self, error: Exception) -> None:
        """Let ``next`` raise ``error``, unless the turn failed before."""
        self._error = self._error or error
        self._arrival.set()


class RemoteCore:
    """One child process from start to end. Created by ``start``; always call ``stop``.

    Args:
        model: The model's id, for error messages.
        synthesis_timeout_s: A loaded child that sends nothing for this long counts as hung.
    """

    def __init__(self, model: str, synthesis_timeout_s: float) -> None:
        self.info: EngineInfo | None = None
        self.timings: Mapping[str, float] = {}
        self._model = model
        self._timeout_s = synthesis_timeout_s
        self._numbers = itertools.count(1)
        self._turns: dict[int, RemoteTurn] = {}
        self._answer: asyncio.Future[None] | None = None
        self._reason: str | None = None
        self._lost = asyncio.Event()
        self._process: EngineProcess | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard = False
        self._silent_checks = 0

    @classmethod
    async def start(cls, model: str, synthesis_timeout_s: float) -> Self:
        """Start the child.

        Raises:
            EngineLoadError: It cannot be started.
        """
        core = cls(model, synthesis_timeout_s)
        try:
            core._process = await EngineProcess.start(core._on_report, core._mark_lost)
        except OSError as error:
            raise EngineLoadError(f"{model}: its process cannot be started: {error}") from None
        return core

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    async def load(self, start: Start, timeout_s: float) -> None:
        """Let the child load the model.

        Raises:
            EngineLoadError: Loading failed, the child died, or it took too long.
        """
        await self._ask(start, timeout_s, "load")
        self._watch()

    async def warm_up(self, text: str, timeout_s: float) -> None:
        """Let the child do everything that is slow the first time. Raises ``EngineLoadError``."""
        await self._ask(WarmUp(text), timeout_s, "warm-up")

    def open(self, spec: TurnSpec) -> RemoteTurn:
        """Begin a turn, to be ended by ``close``. Raises ``EngineError`` if the child is lost."""
        if self._reason is not None:
            raise EngineError(f"{self._model}: {self._reason}")
        turn = RemoteTurn(next(self._numbers), self)
        self._turns[turn.number] = turn
        self.send(Open(turn.number, spec))
        return turn

    def close(self, turn: RemoteTurn) -> None:
        """End a turn: its work in the child ends within one step."""
        if self._turns.pop(turn.number, None) is not None:
            self.send(Cancel(turn.number))

    def send(self, message: Message) -> None:
        """Send a command; does nothing if the child is lost."""
        if self._reason is None:
            self._child.send(message)

    async def drained(self) -> None:
        """Wait while the child is not reading what was sent."""
        await self._child.drained()

    async def lost(self) -> str:
        """Wait until the child is lost; return why."""
        await self._lost.wait()
        return await self._why()

    async def stop(self) -> None:
        """End the child, gracefully if it is loaded and responsive. All its turns fail."""
        graceful = self._reason is None and self.info is not None and self._answer is None
        self._mark_lost("unloaded", Stop() if graceful else None)
        await self._child.stop(wait=graceful)

    async def _ask(self, message: Message, timeout_s: float, work: str) -> None:
        answer = self._answer = asyncio.get_running_loop().create_future()
        self._heard = True
        try:
            if self._reason is None:
                self.send(message)
                async with asyncio.timeout(timeout_s):
                    await answer
        except TimeoutError:
            self._mark_lost(f"its {work} took more than {timeout_s:g} s")
            self._child.kill()
        finally:
            self._answer = None
        if self._reason is not None:
            raise EngineLoadError(f"{self._model}: {await self._why()}")

    @property
    def _child(self) -> EngineProcess:
        assert self._process is not None
        return self._process

    # Reports from the child.

    def _on_report(self, report: Report) -> None:
        self._heard = True
        match report:
            case Audio() if not report.is_sound:
                self._mark_lost("its process spoke nonsense: audio that is none")
                self._child.kill()
            case Audio(number):
                # Audio of a cancelled turn may still arrive.
                if turn := self._turns.get(number):
                    turn.put(report)
            case Spoken(number):
                if turn := self._turns.pop(number, None):
                    turn.finish()
            case Failed(number):
                if turn := self._turns.pop(number, None):
                    turn.fail(report.error)
            case Changed(info):
                self.info = info
            case Loaded(info, timings) | Warm(info, timings):
                self.info, self.timings = info, timings
                if self._answer is not None and not self._answer.done():
                    self._answer.set_result(None)
            case Fatal(message):
                self._mark_lost(message)
            case _:
                assert isinstance(report, Alive)

    # The watchdog.

    def _watch(self) -> None:
        if self._reason is not None:
            return
        # While the child answers WarmUp its loop does not turn; warm-up has its own timeout.
        if self._heard or self._answer is not None:
            self._heard, self._silent_checks = False, 0
        else:
            self._silent_checks += 1
        if self._silent_checks >= CHECKS:
            self._mark_lost(f"no sign of life for {self._timeout_s:g} s")
            self._child.kill()
        else:
            delay = self._timeout_s / CHECKS
            self._timer = asyncio.get_running_loop().call_later(delay, self._watch)

    def _mark_lost(self, reason: str, last_words: Message | None = None) -> None:
        """Mark the child as lost and fail its turns. Only the first reason counts."""
        if self._reason is not None:
            return
        if last_words is not None:
            self.send(last_words)
        self._reason = reason
        if self._timer is not None:
            self._timer.cancel()
        self._lost.set()
        turns, self._turns = self._turns, {}
        for turn in turns.values():
            turn.fail(EngineError(f"{self._model}: {reason}"))
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)

    async def _why(self) -> str:
        assert self._reason is not None
        if self._reason != EngineProcess.ENDED:
            return self._reason
        return f"{self._reason} ({await self._child.status()})"
