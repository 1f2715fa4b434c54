"""One turn's way out: what has been made, what has left, what the server has confirmed.

Entries are numbered without a gap from the moment they enter. The publisher asks each tick what
may leave (``collect``) and reports what the server said (``confirm``). Sending again is harmless,
so every doubt is settled by stepping the cursor back.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from enum import Enum

import anyio
import msgspec

from voicefleet.schemas.audio import FRAMES_PER_S, Reason
from voicefleet.schemas.records import SessionState
from voicefleet.wire.link import Argument, Command
from voicefleet.worker.publish.pacing import Pacer
from voicefleet.worker.publish.retention import Retention, Window
from voicefleet.worker.store import scripts
from voicefleet.worker.store.clock import ServerClock
from voicefleet.worker.synthesis.turn import TurnFrame

FREE_RUN_FRAMES = 100
"""Frames made ahead of publishing where the lead sets no limit."""

READ_AHEAD_FRAMES = 25
"""Frames made ahead of publishing however small the lead is: engines work in bursts."""

HOUSEKEEPING_S = 1.0


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
    """Where a turn's publishing begins: its fence, its place, and what is there already.

    ``keys`` are KEYS of the session scripts; ``last`` is the last entry published: -1 before the
    start entry, 0 after it. ``heard`` is the last one that left before the server forgot some.
    """

    session: str
    keys: tuple[str, ...]
    text_key: str | None
    request: str
    epoch: str
    turn: int
    last: int
    added_ms: int
    heard: int = -1


class _InFlight(msgspec.Struct, frozen=True):
    """A batch on its way: entries before number ``until``, and perhaps the end after them.

    ``record`` is what it says of the session.
    """

    until: int
    ends: bool
    record: dict[str, Argument]


class Outbox:
    """The entries of one turn. Its producer is the turn, its consumer the publisher.

    ``filled`` is set when the turn is ahead as far as it may be for the first time.
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
        # Entries from number ``_base`` on, as stream fields. Those before ``_known`` were on the
        # server once; those before ``_doubted`` may have been, for an answer was lost; those before
        # ``_fresh`` have left, and are kept a while. ``_cursor`` is the next to send, again or not.
        self._entries: deque[Sequence[Argument]] = deque()
        self._base = self._cursor = self._fresh = self._doubted = self._known = opening.last + 1
        self._confirmed = opening.last
        self._resume: deque[tuple[int, bytes]] = deque()
        self._record: dict[str, Argument] = {}
        self._window = Window(retention.audio_window_s, self._base, time.monotonic())
        self._housekeeping_at = time.monotonic() + HOUSEKEEPING_S
        self._in_flight: _InFlight | None = None
        self._wanted = False
        self._paused = False
        self._is_cut = False
        self._end: tuple[Reason, str] | None = None
        self._end_when_paid: tuple[Reason, str] | None = None
        self._outcome: PublishOutcome | None = None
        self.filled = anyio.Event()
        self._space = anyio.Event()
        self._settled = anyio.Event()

    # The turn's side.

    @property
    def frames(self) -> int:
        """Number of the last frame that has left."""
        return max(self._fresh - 1, 0)

    @property
    def ending(self) -> bool:
        """Whether nothing more will be taken: the end is decided, or publishing is over."""
        return self._end is not None or self._outcome is not None

    @property
    def must_replay(self) -> bool:
        """Whether frames that were heard are to be made again: a listener misses an end below."""
        return self._outcome is None and self._next <= self.opening.heard

    def start(self, fields: Mapping[str, str]) -> None:
        """Open the turn with its start entry, unless an earlier owner did or its end is decided."""
        if self.ending:
            return
        self._record["voice"] = fields["voice"]
        if self._base == 0:
            flat: list[Argument] = ["event", "start"]
            for name, value in fields.items():
                flat += [name, value]
            # No request_flush: it leaves with the first frames, or at the next tick.
            self._entries.append(flat)

    async def put(self, frames: Sequence[TurnFrame]) -> None:
        """Add frames in order; waits while the turn is ahead by its lead. Ignored after the end."""
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
        if self._end_when_paid is not None and not self.must_replay:
            self.end_now(*self._end_when_paid)
        if not self._paused and self._pacer.has_room:
            self.request_flush()

    def pause(self) -> None:
        """No further frame leaves, from now on."""
        if not self._paused and self._outcome is None and self._end_when_paid is None:
            self._paused = True
            self._note("paused")

    def resume(self) -> None:
        """Go on with the very next frame."""
        if self._paused:
            self._paused = False
            self._note("speaking")

    def _note(self, state: SessionState) -> None:
        """Put the state into the session's record, without waiting for its next update."""
        updated_ms = self._clock.now_ms()
        self._record |= {"state": state, "frames": self.frames, "updated_ms": updated_ms}
        self.request_flush()

    def close(self, reason: Reason, error: str = "") -> None:
        """End the turn when all its frames have left."""
        if not self.ending:
            self._end = (reason, error)
            self.request_flush()

    def end_now(self, reason: Reason, error: str = "") -> bool:
        """End the turn now: frames that have not left never will, but those that the turn ``owes``.

        Returns whether this is how it ends; ``False`` when an end is decided and on its way.
        """
        if self._outcome is not None or (self._in_flight is not None and self._in_flight.ends):
            return False
        if self.must_replay:
            self.resume()
            self._end_when_paid = (reason, error)
            return True
        self._end = (reason, error)
        self._is_cut = True
        self._drop_unsent()
        self._space.set()
        self.request_flush()
        return True

    def _drop_unsent(self) -> None:
        while self._next > max(self._fresh, self.opening.heard + 1):
            self._entries.pop()

    def settle(self, outcome: PublishOutcome) -> None:
        """Publish nothing more."""
        if self._outcome is None:
            self._outcome = outcome
            self._space.set()
            self._settled.set()

    async def settled(self) -> PublishOutcome:
        """Wait for the end of publishing."""
        await self._settled.wait()
        assert self._outcome is not None
        return self._outcome

    # The publisher's side.

    def close_lane(self) -> None:
        """Nobody collects any more: free the frames, which ``request_flush`` keeps in a cycle."""
        self.request_flush = _nothing

    def collect(self, tick: int) -> list[Command]:
        """What may leave at this tick: an append, the end, both, or nothing."""
        if self._outcome is not None:
            return []
        if self._in_flight is not None:
            self._wanted = True
            return []
        until = self._until(tick)
        now = time.monotonic()
        housekeeping = now >= self._housekeeping_at
        commands: list[Command] = []
        record: dict[str, Argument] = {}
        if until > self._cursor or self._record or housekeeping:
            commands.append(self._append(until, now, housekeeping=housekeeping))
            record, self._record = self._record, {}
        ends = self._end is not None and until == self._next
        if ends:
            commands.append(self._finish(until, now))
        if not commands:
            return commands
        if until > self._fresh:
            self._pacer.published(until - max(self._fresh, 1), tick)
            self._fresh = until
            if self._unsent < self._capacity:
                self._space.set()
        self._cursor = until
        self._in_flight = _InFlight(until, ends, record)
        return commands

    def confirm(self, replies: Sequence[int]) -> bool:
        """Take in what the server said to what was collected, in order.

        Returns whether there is something to collect that did not leave meanwhile.
        """
        sent, self._in_flight = self._in_flight, None
        assert sent is not None
        wanted, self._wanted = self._wanted, False
        last = replies[-1]
        if min(replies) == -2:
            self.settle(PublishOutcome.FENCED)
        elif min(replies) == -3:
            self.settle(PublishOutcome.FORGOTTEN)
        elif sent.ends and last >= self._end_number:
            self.settle(PublishOutcome.ENDED)
        elif last >= sent.until - 1:
            self._confirmed = sent.until - 1
            self._known = max(self._known, sent.until)
            while self._resume and self._resume[0][0] < sent.until:
                self._resume.popleft()
            self._forget_old()
        elif last + 1 < self._base:
            self.settle(PublishOutcome.FORGOTTEN)
        else:
            # The server forgot a tail, in a failover say: send again what it lacks.
            self._confirmed = last
            self._cursor = last + 1
            return True
        return wanted

    def unanswered(self) -> None:
        """Nobody knows what became of what was collected: it is sent again."""
        self._doubted = self._fresh
        self._step_back()

    def refused(self) -> None:
        """The server took nothing of what was collected: what is new in it has not left."""
        left = max(self._known, self._doubted)
        self._pacer.taken_back(self._fresh - max(left, 1))
        self._fresh = left
        if left <= 1:
            self.first_audio_ms = None
        if self._is_cut:
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
        return self._next - self._fresh

    @property
    def _end_number(self) -> int:
        # A turn that ends unspoken has no start entry: its end is number 1.
        return max(self._next, 1)

    def _until(self, tick: int) -> int:
        """The number before which entries may stand on the server now.

        Of a paused turn that is what a listener may know already, and the start: a frame that was
        sent and never written leaves no more, until the turn goes on or is cut behind it.
        """
        if self._paused and not self._is_cut:
            return max(self._known, min(self._next, 1))
        room = self._pacer.due(tick)
        start = 1 if self._fresh == 0 and self._unsent else 0  # takes no time to play
        frames = self._unsent - start
        return self._fresh + start + (frames if room is None else min(room, frames))

    def _append(self, until: int, now: float, *, housekeeping: bool) -> Command:
        opening = self.opening
        ttl: Argument = ""
        keep: Argument = ""
        if housekeeping:
            self._housekeeping_at = now + HOUSEKEEPING_S
            ttl = int(self._retention.audio_ttl_s * 1000)
            keep = self._window.entries(until, now)
            self._record |= {"frames": max(until - 1, 0), "updated_ms": self._clock.now_ms()}
        if self.first_audio_ms is None and self._cursor <= 1 < until:
            self.first_audio_ms = float(max(0, self._clock.now_ms() - opening.added_ms))
            self._record["first_audio_ms"] = int(self.first_audio_ms)
        left = [point for number, point in self._resume if number < until]
        resume = left[-1] if left else b""
        args: list[Argument] = [opening.epoch, opening.turn, self._cursor, ttl, keep, resume]
        args.append(2 * len(self._record))
        for name, value in self._record.items():
            args += (name, value)
        for index in range(self._cursor - self._base, until - self._base):
            entry = self._entries[index]
            args.append(len(entry))
            args += entry
        return scripts.APPEND.command(opening.keys, args)

    def _finish(self, until: int, now: float) -> Command:
        opening = self.opening
        assert self._end is not None
        reason, error = self._end
        number = self._end_number
        args: list[Argument] = [
            opening.epoch,
            opening.turn,
            number,
            int(self._retention.audio_ttl_s * 1000),
            "0" if opening.text_key is None else "1",
            self._window.entries(until, now),
            *("event", "end", "request", opening.request, "reason", reason, "frames", number - 1),
        ]
        if error:
            args += ["error", error]
        args += ["t", self._clock.now_ms()]
        # KEYS are of one slot and number: without a text stream, name a key that is not touched.
        return scripts.FINISH.command([*opening.keys, opening.text_key or opening.keys[0]], args)

    def _forget_old(self) -> None:
        """Let go of what the server will not forget any more."""
        oldest = self._confirmed + 1 - int(self._retention.resend_window_s * FRAMES_PER_S)
        while self._base < oldest:
            self._entries.popleft()
            self._base += 1


def _nothing() -> None:
    """No publisher to request_flush yet."""
