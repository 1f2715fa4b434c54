"""A session's stream as it stood at the end, reconstructed from what the recorder read.

A *generation* of a session lasts until a server loses all its data (or the stream expires). Only at
the start of a new generation

- turn numbers may begin at 1 again, or go on with the turn that was being spoken, which may be
  spoken again from its start; that number may also come later, and numbers before it be left out;
- a request may be spoken again, even if it had its end;
- requests that were waiting may be spoken in any order.

Where a server lost only its newest entries (a tail), the generation goes on. What is written again
must equal what was there, with three exceptions, all of which are counted: a turn that was lost
whole, with its end, has its number used again or left out; a turn that was cut short (not
``completed``) may be cut elsewhere, as the reason for it was lost too; and a turn whose end was
lost may be cut by a control value that was set since.
"""

from collections.abc import Iterator
from typing import Final

import msgspec

from verify.chaos.evidence import Entry, Reading
from verify.chaos.journal import RolledBack
from verify.chaos.quiet_periods import QuietPeriods
from verify.chaos.stream_id import NOWHERE, Id
from verify.chaos.verdict import Violation

CUT: Final = ("stopped", "interrupted")

EXPIRED_AFTER_S: Final = 100.0
"""A stream is kept for 120 s after its last entry."""


class Turn(msgspec.Struct):
    """The entries under one turn number, in order."""

    session: str
    generation: int
    number: int
    entries: list[Entry]

    @property
    def start(self) -> Entry | None:
        """Its start entry, if it has one."""
        return next((entry for entry in self.entries if entry.kind == "start"), None)

    @property
    def end(self) -> Entry | None:
        """Its (first) end entry, if it has one."""
        return next((entry for entry in self.entries if entry.kind == "end"), None)

    @property
    def frames(self) -> list[Entry]:
        """Its frames."""
        return [entry for entry in self.entries if entry.kind == "frame"]

    @property
    def request(self) -> str:
        """The request that it answers; empty without a start or end."""
        said = self.start or self.end
        return "" if said is None else said.fields.get("request", "")

    @property
    def reason(self) -> str:
        """How it ended; empty where it has not."""
        return "" if self.end is None else self.end.fields.get("reason", "")


class Generation(msgspec.Struct):
    """One generation of a session. ``lost_turns`` are turns or parts that a server lost."""

    session: str
    number: int
    began_at: float
    turns: list[Turn]
    lost_turns: list[Turn]
    is_last: bool = True
    expired: bool = False
    """Whether it began because the previous stream had expired."""


class History(msgspec.Struct):
    """All generations of a session, and the violations found in their succession."""

    generations: list[Generation]
    violations: list[Violation]
    reused: int = 0
    """Numbers used again after their turn was lost whole."""
    moved: int = 0
    """Turns cut short elsewhere than before their tail was lost."""

    @property
    def turns(self) -> Iterator[Turn]:
        """The turns of all generations, as they stood at the end."""
        for generation in self.generations:
            yield from generation.turns

    @property
    def listened(self) -> Iterator[Turn]:
        """Turns as a listener received them over all generations, each entry once."""
        whole: dict[tuple[int, str], dict[Id, Entry]] = {}
        for turn in self.turns:
            entries = whole.setdefault((turn.number, turn.request), {})
            for entry in turn.entries:
                entries.setdefault(entry.id, entry)
        for generation in self.generations[:1]:
            for entries in whole.values():
                yield from _turns(generation.session, generation.number, entries)

    @property
    def lost_turns(self) -> Iterator[Turn]:
        """Turns that were read and then lost."""
        for generation in self.generations:
            yield from generation.lost_turns


def history(session: str, readings: list[Reading], quiet: QuietPeriods) -> History:
    """Reconstruct a session from everything that the recorder read of it."""
    follower = _Follower(session, quiet)
    for reading in readings:
        if isinstance(reading, RolledBack):
            follower.rolled_back(reading)
        else:
            follower.heard(reading)
    return follower.result()


class _Follower:
    """The stream's state, entry by entry."""

    def __init__(self, session: str, quiet: QuietPeriods) -> None:
        self._session = session
        self._quiet = quiet
        self._history = History([], [])
        self._view: dict[Id, Entry] = {}
        self._forgotten: dict[Id, Entry] = {}
        self._lost_turns: list[Turn] = []
        """Turns that were lost whole, and whose numbers others have now."""
        self._gone: set[int] = set()
        """Numbers of turns that were lost whole, and of which nothing has come back."""
        self._rereads = False
        self._from_the_beginning = False
        self._latest = NOWHERE
        self._last_at = 0.0
        self._began_at = 0.0
        self._expired = False

    def heard(self, entry: Entry) -> None:
        if self._rereads:  # entries from here on are read again
            self._rereads = False
            if self._from_the_beginning:
                self._restore(entry.id)
            self._drop(entry.id)
        elif entry.id < self._latest:
            self._violated(
                "in order", entry.id, entry.at, f"{entry.id} was read after {self._latest}"
            )
        self._latest = entry.id
        known = self._view.get(entry.id)
        if known is not None:
            if known.content != entry.content:
                self._differs(known, entry)
            return
        was = self._forgotten.get(entry.id)
        if was is not None and was.content == entry.content:
            entry.at = was.at  # listeners had it then
            self._gone.discard(entry.id.turn)
        elif was is not None and entry.id.turn in self._gone:
            self._set_aside(entry)
        self._view[entry.id] = entry
        self._last_at = entry.at if was is None else self._last_at

    def rolled_back(self, rolled_back: RolledBack) -> None:
        self._latest = NOWHERE
        forgot = self._quiet.forgot(rolled_back.at)
        expired = not rolled_back.newest and rolled_back.at - self._last_at > EXPIRED_AFTER_S
        if "all" in forgot or (expired and not forgot):
            early = self._heard_since(self._quiet.forgot_all_at(rolled_back.at)) if forgot else {}
            self._close_generation(is_last=False)
            self._began_at, self._expired = rolled_back.at, not forgot
            self._forgotten = early
            return
        if "tail" not in forgot:
            self._violated(
                "kept",
                Id.parse(rolled_back.seen),
                rolled_back.at,
                f"{rolled_back.seen} was read; then the newest was "
                f"{rolled_back.newest or 'nothing'}, though no server lost data",
            )
        newest = Id.parse(rolled_back.newest) if rolled_back.newest else None
        self._from_the_beginning = newest is None or newest >= Id.parse(rolled_back.seen)
        if newest is None:
            self._drop(NOWHERE)
        elif newest in self._view and newest < Id.parse(rolled_back.seen):
            self._drop(Id(newest.turn, newest.n + 1))
        self._rereads = newest is not None

    def result(self) -> History:
        self._close_generation(is_last=True)
        return self._history

    def _heard_since(self, moment: float) -> dict[Id, Entry]:
        """Take out entries of the next generation that were read before its start was noticed.

        They are read again and must be the same then.
        """
        early = {one: entry for one, entry in self._view.items() if entry.at > moment}
        for one in early:
            del self._view[one]
        return early

    def _restore(self, oldest: Id) -> None:
        """A server with less data was read in between: restore what has been trimmed since."""
        for one in [one for one in self._forgotten if one < oldest]:
            self._view[one] = self._forgotten.pop(one)

    def _drop(self, begin: Id) -> None:
        """Entries from ``begin`` on may be lost."""
        dropped = [one for one in self._view if one >= begin]
        for one in dropped:
            self._forgotten[one] = self._view.pop(one)
        self._gone |= {one.turn for one in dropped} - {one.turn for one in self._view}

    def _set_aside(self, entry: Entry) -> None:
        """Keep a turn that was lost whole, if another request's entry has its number now."""
        turn, number = entry.id.turn, len(self._history.generations)
        gone = {one: was for one, was in self._forgotten.items() if one.turn == turn}
        (lost,) = _turns(self._session, number, gone)
        begun = {one: said for one, said in self._view.items() if one.turn == turn}
        (new,) = _turns(self._session, number, begun | {entry.id: entry})
        if lost.request and new.request and lost.request != new.request:
            self._lost_turns.append(lost)
            self._gone.discard(turn)
            self._history.reused += 1
            for one in gone:
                del self._forgotten[one]

    def _close_generation(self, *, is_last: bool) -> None:
        """End the generation and compare what was lost with what was written again."""
        number = len(self._history.generations)
        turns = _turns(self._session, number, self._view)
        # Turns that were written again unchanged are not lost.
        changed = {
            one.turn
            for one, entry in self._forgotten.items()
            if one not in self._view or self._view[one].content != entry.content
        }
        left = {one: entry for one, entry in self._forgotten.items() if one.turn in changed}
        lost_turns = _turns(self._session, number, left)
        now = {turn.number: turn for turn in turns}
        for lost in lost_turns:
            if lost.number in now:
                self._compare(lost, now[lost.number])
        generation = Generation(
            self._session, number, self._began_at, turns, [*self._lost_turns, *lost_turns]
        )
        generation.is_last, generation.expired = is_last, self._expired
        self._history.generations.append(generation)
        self._view, self._forgotten, self._lost_turns, self._gone = {}, {}, [], set()
        self._rereads = False

    def _compare(self, was: Turn, now: Turn) -> None:
        """Compare a lost turn, or tail, with what was written in its place."""
        again = {entry.id: entry for entry in now.entries}
        cut = bool(was.reason) and (was.reason != "completed" or now.reason in CUT)
        for entry in was.entries:
            other = again.get(entry.id)
            if other is None or other.content == entry.content:
                continue
            if cut and (entry.kind == "end" or other.kind == "end"):
                self._history.moved += 1
            else:
                self._differs(entry, other)

    def _differs(self, was: Entry, now: Entry) -> None:
        self._violated(
            "same", now.id, now.at, f"{now.id} was {_shown(was)} and became {_shown(now)}"
        )

    def _violated(self, promise: str, place: Id, at: float, detail: str) -> None:
        self._history.violations.append(
            Violation(promise=promise, session=self._session, turn=place.turn, at=at, detail=detail)
        )


def _turns(session: str, generation: int, entries: dict[Id, Entry]) -> list[Turn]:
    turns: dict[int, Turn] = {}
    for one in sorted(entries):
        turn = turns.setdefault(one.turn, Turn(session, generation, one.turn, []))
        turn.entries.append(entries[one])
    return list(turns.values())


def _shown(entry: Entry) -> str:
    said = " ".join(f"{name}={value}" for name, value in entry.fields.items() if name != "text")
    return f"{entry.kind} {entry.digest}{said}".strip()
