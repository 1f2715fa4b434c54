"""The entries of one turn: which were made, which were sent, which the server has confirmed.

Entries are numbered without a gap when they are put. Each tick the publisher asks what may be sent
(``collect``) and reports what the server replied (``confirm``). Sending an entry twice is harmless,
so after a lost reply or a refusal everything unconfirmed is sent again.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from enum import Enum

import anyio
import msgspec

from voicefleet.schemas.audio import FRAMES_PER_S, Reason
from voicefleet.schemas.records import SessionState
from voicefleet.wire.link import Argument
from voicefleet.worker.publish.pacing import Pacer
from voicefleet.worker.publish.retention import Retention, Window
from voicefleet.worker.store.clock import ServerClock
from voicefleet.worker.store.scripts.script import SessionKeys
from voicefleet.worker.store.scripts.session import FENCED, FORGOTTEN, Append, Finish
from voicefleet.worker.synthesis.turn import TurnFrame

FREE_RUN_FRAMES = 100
"""How many frames a turn may be ahead of publishing where its lead sets no limit."""

READ_AHEAD_FRAMES = 25
"""How many frames it may be ahead at least, whatever its lead: engines work in bursts."""

HOUSEKEEPING_S = 1.0
"""How often the TTL of the session's keys is renewed, its stream trimmed, its record updated."""


class PublishOutcome(Enum):
    """How a turn's publishing came to its end."""

    ENDED = "ended"
    """The turn's end entry is in the stream."""
    FENCED = "fenced"
    """A later owner holds the lease."""
    FORGOTTEN = "forgotten"
    """The server forgot the lease, or more frames than are kept to be sent again."""
    UNWRITABLE = "unwritable"
    """The audio key takes no entries."""
    HANDED_OVER = "handed_over"
    """This worker gave the turn up for another worker."""
    ENGINE_FAILED = "engine_failed"
    """The engine failed, and another attempt is left."""


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """Where a turn's publishing begins: its lease, and what its stream holds already.

    ``last`` is the number of the last entry in the stream: -1 before the start entry, 0 after it.
    ``last_delivered`` is the last one that was in the stream before the server forgot some: a
    reader may have it. ``added_ms`` is when the request was added: unix ms in server time.
    """

    session: str
    keys: SessionKeys
    text_key: str | None
    request: str
    epoch: str
    turn: int
    last: int
    added_ms: int
    last_delivered: int = -1


class _InFlight(msgspec.Struct, frozen=True):
    """A batch without a reply yet: entries before number ``until``, and the end if ``ends``.

    ``record`` holds the changes that it makes to the session's record.
    """

    until: int
    ends: bool
    record: dict[str, Argument]


class Outbox:
    """The entries of one turn: the turn puts them, the publisher collects and confirms them.

    ``filled`` is set when the turn is first as far ahead of publishing as it may be.
    ``request_flush`` asks the publisher to collect now, without waiting for the next tick.
    ``first_audio_ms`` is the time from the request to its first frame.
    """

    def __init__(
        self, opening: Opening, lead_ms: int, retention: Retention, clock: ServerClock
    ) -> None:
        self.opening = opening
        self.first_audio_ms: float | None = None
        self.request_flush = _nothing
        self._retention = retention
        self._clock = clock
        self._pacer = Pacer(lead_ms)
        self._lead = self._pacer.lead_frames or FREE_RUN_FRAMES
        # Entry numbers. ``_entries`` holds those from ``_base`` on, as stream fields; ``_cursor``
        # is the next to send, for the first time or again. Those before ``_sent`` were sent once.
        # Those before ``_maybe_written`` may be in the stream, for a reply was lost. Those before
        # ``_written`` were confirmed once, though the server may have lost them since.
        self._entries: deque[Sequence[Argument]] = deque()
        self._base = self._cursor = self._sent = opening.last + 1
        self._maybe_written = self._written = opening.last + 1
        self._confirmed = opening.last
        self._resume: deque[tuple[int, bytes]] = deque()
        self._record: dict[str, Argument] = {}
        self._window = Window(retention.audio_window_s, self._base, time.monotonic())
        self._housekeeping_at = time.monotonic() + HOUSEKEEPING_S
        self._in_flight: _InFlight | None = None
        self._wanted = False
        self._paused = False
        self._ends_now = False
        self._end: tuple[Reason, str] | None = None
        self._end_after_replay: tuple[Reason, str] | None = None
        self._outcome: PublishOutcome | None = None
        self.filled = anyio.Event()
        self._space = anyio.Event()
        self._settled = anyio.Event()

    # The turn's side.

    @property
    def frames(self) -> int:
        """The number of the last frame that was sent."""
        return max(self._sent - 1, 0)

    @property
    def ending(self) -> bool:
        """Whether ``put`` ignores frames: the turn's end is decided, or publishing has stopped."""
        return self._end is not None or self._outcome is not None

    @property
    def must_replay(self) -> bool:
        """Whether frames are missing that a reader may have: an end below them is never read."""
        return self._outcome is None and self._next <= self.opening.last_delivered

    def start(self, fields: Mapping[str, str]) -> None:
        """Put the start entry, unless an earlier owner published it or the end is decided."""
        if self.ending:
            return
        self._record["voice"] = fields["voice"]
        if self._base == 0:
            flat: list[Argument] = ["event", "start"]
            for name, value in fields.items():
                flat += [name, value]
            # Without ``request_flush``: it is sent with the first frames, or at the next tick.
            self._entries.append(flat)

    async def put(self, frames: Sequence[TurnFrame]) -> None:
        """Put the next frames; wait while the turn is too far ahead. Ignored after the end."""
        while not self.ending and self._unsent >= self._capacity:
            self.filled.set()
            self._space = anyio.Event()
            await self._space.wait()
        if self.ending:
            return
        for frame in frames:
            if frame.resume is not None:
                self._resume.append((frame.n, frame.resume))
            if frame.text:
                self._entries.append(("pcm", frame.pcm, "text", frame.text))
            else:
                self._entries.append(("pcm", frame.pcm))
        if self._end_after_replay is not None and not self.must_replay:
            self.end_now(*self._end_after_replay)
        if not self._paused and self._pacer.has_room:
            self.request_flush()

    def pause(self) -> None:
        """Send no further frame until ``resume``."""
        if not self._paused and self._outcome is None and self._end_after_replay is None:
            self._paused = True
            self._note("paused")

    def resume(self) -> None:
        """Continue with the next frame."""
        if self._paused:
            self._paused = False
            self._note("speaking")

    def _note(self, state: SessionState) -> None:
        """Write the state into the session's record now, not at its next update."""
        updated_ms = self._clock.now_ms()
        self._record |= {"state": state, "frames": self.frames, "updated_ms": updated_ms}
        self.request_flush()

    def close(self, reason: Reason, error: str = "") -> None:
        """End the turn after its last frame."""
        if not self.ending:
            self._end = (reason, error)
            self.request_flush()

    def end_now(self, reason: Reason, error: str = "") -> bool:
        """End the turn now. Frames that were not sent are dropped, once nothing ``must_replay``.

        Returns whether this is how the turn ends; ``False`` when another end was already sent.
        """
        if self._outcome is not None or (self._in_flight is not None and self._in_flight.ends):
            return False
        if self.must_replay:
            self.resume()
            self._end_after_replay = (reason, error)
            return True
        self._end = (reason, error)
        self._ends_now = True
        self._drop_unsent()
        self._space.set()
        self.request_flush()
        return True

    def _drop_unsent(self) -> None:
        while self._next > max(self._sent, self.opening.last_delivered + 1):
            self._entries.pop()

    def settle(self, outcome: PublishOutcome) -> None:
        """Stop publishing."""
        if self._outcome is None:
            self._outcome = outcome
            self._space.set()
            self._settled.set()

    async def settled(self) -> PublishOutcome:
        """Wait until publishing has stopped, and say why."""
        await self._settled.wait()
        assert self._outcome is not None
        return self._outcome

    # The publisher's side.

    def close_lane(self) -> None:
        """Break the reference cycle through ``request_flush``, so that the frames are freed."""
        self.request_flush = _nothing

    def collect(self, tick: int) -> list[Append | Finish]:
        """Make the calls to send at this tick: an append, the end, both, or none.

        None as well while the last batch has no reply: ``confirm`` then asks for another.
        """
        if self._outcome is not None:
            return []
        if self._in_flight is not None:
            self._wanted = True
            return []
        until, after_last = self._until(tick), self._next
        now = time.monotonic()
        housekeeping = now >= self._housekeeping_at
        calls: list[Append | Finish] = []
        record: dict[str, Argument] = {}
        if until > self._cursor or self._record or housekeeping:
            calls.append(self._append(until, now, housekeeping=housekeeping))
            record, self._record = self._record, {}
        ends = self._end is not None and until == after_last
        if ends:
            calls.append(self._finish(until, now))
        if not calls:
            return calls
        if until > self._sent:
            self._pacer.published(until - max(self._sent, 1), tick)
            self._sent = until
            if after_last - until < self._capacity:
                self._space.set()
        self._cursor = until
        self._in_flight = _InFlight(until, ends, record)
        return calls

    def confirm(self, replies: Sequence[int]) -> bool:
        """Take the replies to the calls that were collected, in their order.

        Returns whether to collect again at once.
        """
        sent, self._in_flight = self._in_flight, None
        assert sent is not None
        wanted, self._wanted = self._wanted, False
        last = replies[-1]
        if min(replies) == FENCED:
            self.settle(PublishOutcome.FENCED)
        elif min(replies) == FORGOTTEN:
            self.settle(PublishOutcome.FORGOTTEN)
        elif sent.ends and last >= self._end_number:
            self.settle(PublishOutcome.ENDED)
        elif last >= sent.until - 1:
            self._confirmed = sent.until - 1
            self._written = max(self._written, sent.until)
            while self._resume and self._resume[0][0] < sent.until:
                self._resume.popleft()
            self._forget_old()
        elif last + 1 < self._base:
            self.settle(PublishOutcome.FORGOTTEN)
        else:
            # The server lost the newest entries, in a failover for instance: send them again.
            self._confirmed = last
            self._cursor = last + 1
            return True
        return wanted

    def unanswered(self) -> None:
        """Send everything unconfirmed again: the reply was lost, so the server may have it."""
        self._maybe_written = self._sent
        self._step_back()

    def refused(self) -> None:
        """Send the batch again later: the server wrote nothing of it, so no reader has it."""
        sent = max(self._written, self._maybe_written)
        self._pacer.taken_back(self._sent - max(sent, 1))
        self._sent = sent
        if sent <= 1:
            self.first_audio_ms = None
        if self._ends_now:
            self._drop_unsent()
        self._step_back()

    def _step_back(self) -> None:
        sent, self._in_flight = self._in_flight, None
        self._cursor = self._confirmed + 1
        if sent is not None:
            self._record = sent.record | self._record

    @property
    def _next(self) -> int:
        """The number of the next entry to be put."""
        return self._base + len(self._entries)

    @property
    def _capacity(self) -> int:
        # A paused turn makes no more audio than its lead.
        return self._lead if self._paused else max(self._lead, READ_AHEAD_FRAMES)

    @property
    def _unsent(self) -> int:
        return self._next - self._sent

    @property
    def _end_number(self) -> int:
        # A turn that ends unspoken has no start entry: its end is number 1.
        return max(self._next, 1)

    def _until(self, tick: int) -> int:
        """The number before which entries may be in the stream now.

        While the turn is paused: entries that a reader may have already, and the start entry. A
        frame that was sent and never written has to wait until the turn continues or ends.
        """
        if self._paused and not self._ends_now:
            return max(self._written, min(self._next, 1))
        room, unsent = self._pacer.due(tick), self._unsent
        start = 1 if self._sent == 0 and unsent else 0  # takes no time to play
        frames = unsent - start
        return self._sent + start + (frames if room is None else min(room, frames))

    def _append(self, until: int, now: float, *, housekeeping: bool) -> Append:
        opening, entries, base = self.opening, self._entries, self._base
        ttl_ms: int | None = None
        keep_entries: int | None = None
        if housekeeping:
            self._housekeeping_at = now + HOUSEKEEPING_S
            ttl_ms = int(self._retention.audio_ttl_s * 1000)
            keep_entries = self._window.entries(until, now)
            self._record |= {"frames": max(until - 1, 0), "updated_ms": self._clock.now_ms()}
        if self.first_audio_ms is None and self._cursor <= 1 < until:
            self.first_audio_ms = float(max(0, self._clock.now_ms() - opening.added_ms))
            self._record["first_audio_ms"] = int(self.first_audio_ms)
        resume = b""
        for number, point in self._resume:
            if number < until:
                resume = point
        return Append(
            keys=opening.keys,
            epoch=opening.epoch,
            turn=opening.turn,
            first=self._cursor,
            ttl_ms=ttl_ms,
            keep_entries=keep_entries,
            resume=resume,
            record=self._record,
            entries=[entries[number - base] for number in range(self._cursor, until)],
        )

    def _finish(self, until: int, now: float) -> Finish:
        opening = self.opening
        assert self._end is not None
        reason, error = self._end
        number = self._end_number
        end: dict[str, Argument] = {
            "event": "end",
            "request": opening.request,
            "reason": reason,
            "frames": number - 1,
        }
        if error:
            end["error"] = error
        return Finish(
            keys=opening.keys,
            text=opening.text_key,
            epoch=opening.epoch,
            turn=opening.turn,
            number=number,
            ttl_ms=int(self._retention.audio_ttl_s * 1000),
            keep_entries=self._window.entries(until, now),
            end=end | {"t": self._clock.now_ms()},
        )

    def _forget_old(self) -> None:
        """Drop entries that were confirmed too long ago for a failover to lose them."""
        oldest = self._confirmed + 1 - int(self._retention.resend_window_s * FRAMES_PER_S)
        while self._base < oldest:
            self._entries.popleft()
            self._base += 1


def _nothing() -> None:
    """Stand in for ``request_flush`` where no publisher collects."""
