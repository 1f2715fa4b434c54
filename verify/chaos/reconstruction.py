"""A session's stream as it stood in the end, from what the recorder read of it.

A *life* of a session is what one memory of it holds. It begins anew where a server forgot all (or
where the stream expired, long after its last entry). Then, and only then:

- numbers of turns may begin at 1 again, or go on with the one that was being spoken, which may be
  spoken anew from its start; the number that was being spoken may also come later, with numbers
  between left out;
- a request may be spoken again, also one that had its end;
- requests that were waiting may be spoken in any order.

Where a server forgot its newest entries alone (a tail), the life goes on. What is written anew
has to be what was there, with three exceptions that nobody can mend: a turn that was forgotten as a
whole, its end included, has its number used again, or left out; a turn that was cut short (not
``completed``) may be cut elsewhere, as the reason for it was forgotten too; and one whose end was
forgotten, so that it had to be ended again, may be cut by what was wished meanwhile. All are
counted.
"""

from collections.abc import Iterator
from typing import Final

import msgspec

from verify.chaos.evidence import Entry, Reading
from verify.chaos.journal import Shrank
from verify.chaos.quiet_periods import Calm
from verify.chaos.stream_id import NOWHERE, Id
from verify.chaos.verdict import Violation

CUT: Final = ("stopped", "interrupted")

EXPIRED_AFTER_S: Final = 100.0
"""A stream is kept for 120 s after its last entry."""


class Turn(msgspec.Struct):
    """The entries under one number, in their order."""

    session: str
    life: int
    number: int
    entries: list[Entry]

    @property
    def start(self) -> Entry | None:
        """Its start entry, where it has one."""
        return next((entry for entry in self.entries if entry.kind == "start"), None)

    @property
    def end(self) -> Entry | None:
        """Its (first) end entry, where it has one."""
        return next((entry for entry in self.entries if entry.kind == "end"), None)

    @property
    def frames(self) -> list[Entry]:
        """Its frames."""
        return [entry for entry in self.entries if entry.kind == "frame"]

    @property
    def request(self) -> str:
        """Whom it answers; empty where nothing says so."""
        said = self.start or self.end
        return "" if said is None else said.fields.get("request", "")

    @property
    def reason(self) -> str:
        """How it ended; empty where it has not."""
        return "" if self.end is None else self.end.fields.get("reason", "")


class Life(msgspec.Struct):
    """One life of a session. ``ghosts`` are turns, or parts of them, that a server forgot."""

    session: str
    number: int
    began_at: float
    turns: list[Turn]
    ghosts: list[Turn]
    is_last: bool = True
    expired: bool = False
    """Whether it began because the stream before it had come to the end of its time."""


class History(msgspec.Struct):
    """All lives of a session, and what was wrong with how they follow from another."""

    lives: list[Life]
    violations: list[Violation]
    reused: int = 0
    """Numbers used again after their turn was forgotten as a whole."""
    moved: int = 0
    """Turns cut short elsewhere than before their tail was forgotten."""

    @property
    def turns(self) -> Iterator[Turn]:
        """Of all lives, as they stood in the end."""
        for life in self.lives:
            yield from life.turns

    @property
    def listened(self) -> Iterator[Turn]:
        """Turns as one hears them who does not care for lives: each entry when it first came."""
        whole: dict[tuple[int, str], dict[Id, Entry]] = {}
        for turn in self.turns:
            entries = whole.setdefault((turn.number, turn.request), {})
            for entry in turn.entries:
                entries.setdefault(entry.id, entry)
        for life in self.lives[:1]:
            for entries in whole.values():
                yield from _turns(life.session, life.number, entries)

    @property
    def ghosts(self) -> Iterator[Turn]:
        """What was heard and forgotten."""
        for life in self.lives:
            yield from life.ghosts


def history(session: str, readings: list[Reading], calm: Calm) -> History:
    """Follow the recorder through everything it read of a session."""
    follower = _Follower(session, calm)
    for reading in readings:
        if isinstance(reading, Shrank):
            follower.shrank(reading)
        else:
            follower.heard(reading)
    return follower.result()


class _Follower:
    """The stream as it stands, entry by entry."""

    def __init__(self, session: str, calm: Calm) -> None:
        self._session = session
        self._calm = calm
        self._history = History([], [])
        self._view: dict[Id, Entry] = {}
        self._forgotten: dict[Id, Entry] = {}
        self._ghosts: list[Turn] = []
        """Turns that were forgotten whole, and whose numbers others have now."""
        self._gone: set[int] = set()
        """Numbers of turns that were forgotten whole, as far as nothing has come back of them."""
        self._rereads = False
        self._from_the_beginning = False
        self._latest = NOWHERE
        self._last_at = 0.0
        self._began_at = 0.0
        self._expired = False

    def heard(self, entry: Entry) -> None:
        if self._rereads:  # it was read again from somewhere: what is behind that is doubted
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
            entry.at = was.at  # nobody needed to hear it again
            self._gone.discard(entry.id.turn)
        elif was is not None and entry.id.turn in self._gone:
            self._lay_to_rest(entry)
        self._view[entry.id] = entry
        self._last_at = entry.at if was is None else self._last_at

    def shrank(self, shrank: Shrank) -> None:
        self._latest = NOWHERE
        forgot = self._calm.forgot(shrank.at)
        expired = not shrank.newest and shrank.at - self._last_at > EXPIRED_AFTER_S
        if "all" in forgot or (expired and not forgot):
            early = self._heard_since(self._calm.forgot_all_at(shrank.at)) if forgot else {}
            self._bury(is_last=False)
            self._began_at, self._expired = shrank.at, not forgot
            self._forgotten = early
            return
        if "tail" not in forgot:
            self._violated(
                "kept",
                Id.parse(shrank.seen),
                shrank.at,
                f"{shrank.seen} was read; then the newest was {shrank.newest or 'nothing'}, "
                "though no server forgot",
            )
        newest = Id.parse(shrank.newest) if shrank.newest else None
        self._from_the_beginning = newest is None or newest >= Id.parse(shrank.seen)
        if newest is None:
            self._drop(NOWHERE)
        elif newest in self._view and newest < Id.parse(shrank.seen):
            self._drop(Id(newest.turn, newest.n + 1))
        self._rereads = newest is not None

    def result(self) -> History:
        self._bury(is_last=True)
        return self._history

    def _heard_since(self, moment: float) -> dict[Id, Entry]:
        """Take out what was read of the next life before this reader knew that it had begun.

        It is read again, and has to be the same then.
        """
        early = {one: entry for one, entry in self._view.items() if entry.at > moment}
        for one in early:
            del self._view[one]
        return early

    def _restore(self, oldest: Id) -> None:
        """A server that knew less was asked in between; what is older was trimmed since."""
        for one in [one for one in self._forgotten if one < oldest]:
            self._view[one] = self._forgotten.pop(one)

    def _drop(self, begin: Id) -> None:
        """What is not before ``begin`` may not be there any more."""
        dropped = [one for one in self._view if one >= begin]
        for one in dropped:
            self._forgotten[one] = self._view.pop(one)
        self._gone |= {one.turn for one in dropped} - {one.turn for one in self._view}

    def _lay_to_rest(self, entry: Entry) -> None:
        """A turn that was forgotten whole, if it is another's entry that came under its number."""
        turn, number = entry.id.turn, len(self._history.lives)
        gone = {one: was for one, was in self._forgotten.items() if one.turn == turn}
        (ghost,) = _turns(self._session, number, gone)
        begun = {one: said for one, said in self._view.items() if one.turn == turn}
        (new,) = _turns(self._session, number, begun | {entry.id: entry})
        if ghost.request and new.request and ghost.request != new.request:
            self._ghosts.append(ghost)
            self._gone.discard(turn)
            self._history.reused += 1
            for one in gone:
                del self._forgotten[one]

    def _bury(self, *, is_last: bool) -> None:
        """This life is over: see what it came to."""
        number = len(self._history.lives)
        turns = _turns(self._session, number, self._view)
        # What was written again as it was is no ghost.
        changed = {
            one.turn
            for one, entry in self._forgotten.items()
            if one not in self._view or self._view[one].content != entry.content
        }
        left = {one: entry for one, entry in self._forgotten.items() if one.turn in changed}
        ghosts = _turns(self._session, number, left)
        now = {turn.number: turn for turn in turns}
        for ghost in ghosts:
            if ghost.number in now:
                self._compare(ghost, now[ghost.number])
        life = Life(self._session, number, self._began_at, turns, [*self._ghosts, *ghosts])
        life.is_last, life.expired = is_last, self._expired
        self._history.lives.append(life)
        self._view, self._forgotten, self._ghosts, self._gone = {}, {}, [], set()
        self._rereads = False

    def _compare(self, was: Turn, now: Turn) -> None:
        """A turn that was forgotten, or its tail, and what was written in its place."""
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


def _turns(session: str, life: int, entries: dict[Id, Entry]) -> list[Turn]:
    turns: dict[int, Turn] = {}
    for one in sorted(entries):
        turn = turns.setdefault(one.turn, Turn(session, life, one.turn, []))
        turn.entries.append(entries[one])
    return list(turns.values())


def _shown(entry: Entry) -> str:
    said = " ".join(f"{name}={value}" for name, value in entry.fields.items() if name != "text")
    return f"{entry.kind} {entry.digest}{said}".strip()
