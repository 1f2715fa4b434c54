"""The real ``worker.publish.outbox`` as values: each state of a turn's outbox has a number.

Its clocks stand still and its lead is 0: every frame may be sent at once, so that batches of every
size are explored.
"""

# pyright: reportPrivateUsage=false
# The state of an outbox is what makes two of them the same.

import copy
from collections import deque
from collections.abc import Callable, Coroutine
from math import inf
from typing import Any, NamedTuple

from verify.model_check import calls
from verify.model_check.calls import Call
from voicefleet.schemas.audio import Reason
from voicefleet.worker.publish.outbox import Opening, Outbox, PublishOutcome, Retention
from voicefleet.worker.store.clock import ServerClock
from voicefleet.worker.synthesis.turn import TurnFrame

RETENTION = Retention(audio_ttl_s=3600, audio_window_s=60, resend_window_s=5)
CLOCKS = {"_clock", "_housekeeping_at", "_window", "_pacer", "_retention", "first_audio_ms"}
UNUSED = {
    "_written",
    "_maybe_written",
}  # by all but pauses and refusals, of which there are none here
EVENTS = {"_settled", "_space", "request_flush", "opening", "_record"}


class StoppedClock(ServerClock):
    """A server clock that stands at 0: states must not differ by time."""

    def now_ms(self) -> int:
        """Always 0."""
        return 0


class Sent(NamedTuple):
    """An outbox after ``collect``, and what leaves."""

    outbox: int
    calls: tuple[Call, ...]


class Outboxes:
    """Every state of an outbox that was met so far."""

    def __init__(self) -> None:
        self._met: list[Outbox] = []
        self._numbers: dict[Any, int] = {}
        self._done: dict[Any, Any] = {}

    def open(self, session: str, request: str, turn: int, last: int) -> int:
        """The outbox of a turn that was just acquired."""

        def make() -> int:
            opening = Opening(
                session=session,
                keys=calls.session_keys(session),
                text_key=None,
                request=request,
                epoch=calls.EPOCH,
                turn=turn,
                last=last,
                added_ms=0,
            )
            outbox = Outbox(opening, 0, RETENTION, StoppedClock())
            outbox._housekeeping_at = inf
            return self._number(outbox)

        return self._once(("open", session, request, turn, last), make)

    def start(self, number: int) -> int:
        """Put the start entry."""

        def start() -> int:
            outbox = self._clone(number)
            fields = {"request": outbox.opening.request, "model": calls.MODEL, "voice": "v"}
            outbox.start(fields)
            return self._number(outbox)

        return self._once(("start", number), start)

    def send(self, number: int, frames: int, end: tuple[Reason, str] | None) -> Sent:
        """Put so many frames more, close if there is an ``end``, and collect."""

        def send() -> Sent:
            outbox = self._clone(number)
            first = max(self.next_frame(number), 1)
            request = outbox.opening.request
            for n in range(first, first + frames):
                _finish(outbox.put([TurnFrame(n, pcm(request, n).encode())]))
            if end is not None:
                outbox.close(*end)
            return self._collect(outbox)

        return self._once(("send", number, frames, end), send)

    def end_now(self, number: int, reason: Reason, error: str) -> int:
        """End now."""

        def end_now() -> int:
            outbox = self._clone(number)
            outbox.end_now(reason, error)
            return self._number(outbox)

        return self._once(("end_now", number, reason, error), end_now)

    def confirm(self, number: int, replies: tuple[int, ...]) -> int:
        """The outbox after the replies to what it sent."""

        def confirm() -> int:
            outbox = self._clone(number)
            outbox.confirm(replies)
            return self._number(outbox)

        return self._once(("confirm", number, *(str(reply) for reply in replies)), confirm)

    def unanswered(self, number: int) -> int:
        """The outbox after its connection was lost."""

        def unanswered() -> int:
            outbox = self._clone(number)
            outbox.unanswered()
            return self._number(outbox)

        return self._once(("unanswered", number), unanswered)

    def outcome(self, number: int) -> PublishOutcome | None:
        """How its publishing ended, once it has."""
        return self._met[number]._outcome

    def is_ending(self, number: int) -> bool:
        """Whether its turn's end is on its way."""
        return self._met[number].ending

    def next_frame(self, number: int) -> int:
        """The number of the next entry to be put; 0: the start entry."""
        return self._met[number]._next

    def wants(self, number: int) -> bool:
        """Whether there is anything to send without another frame."""
        return self._once(("wants", number), lambda: bool(self._clone(number).collect(0)))

    def _collect(self, outbox: Outbox) -> Sent:
        session = outbox.opening.session
        sent = tuple(calls.published(session, call) for call in outbox.collect(0))
        return Sent(self._number(outbox), sent)

    def _clone(self, number: int) -> Outbox:
        clone = copy.copy(self._met[number])
        for name, value in vars(clone).items():
            if isinstance(value, deque | dict):
                setattr(clone, name, value.copy())
        return clone

    def _number(self, outbox: Outbox) -> int:
        opening = outbox.opening
        parts = vars(outbox).items()
        state = [
            (name, repr(value)) for name, value in parts if name not in CLOCKS | EVENTS | UNUSED
        ]
        key = (opening.session, opening.request, opening.turn, tuple(sorted(state)))
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._met)
            self._met.append(outbox)
        return number

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._done:
            self._done[key] = make()
        return self._done[key]


def pcm(request: str, n: int) -> str:
    """The content of frame ``n`` of a request, the same from every worker."""
    return f"{request}#{n}"


def _finish(step: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that does not wait."""
    try:
        step.send(None)
    except StopIteration:
        return
    raise RuntimeError("the outbox is full")
