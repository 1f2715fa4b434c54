"""The result of a check: violations, and a row for each kind of fault."""

from collections import Counter
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table

SHOWN: Final = 25
UNDISTURBED: Final = "(undisturbed)"


PROMISES: Final = {
    "one start": "a turn that is spoken begins with its start, n = 0, and has no other",
    "one end": "a turn has one end; one that is not spoken is its end alone, n = 1",
    "nothing after": "no entry follows an end in its turn",
    "dense": "entries of a turn are numbered without a gap",
    "turns dense": "turns are numbered 1, 2, 3 within a generation",
    "in order": "ids only grow while a stream is read",
    "known": "entries are starts, frames or ends",
    "frames counted": "the end's frames is the number of frames",
    "frame size": "a frame is sample_rate / 50 samples of two bytes",
    "header": "the start says what was asked; start and end say whom they answer, and when",
    "same": "an id that is read again has the same content",
    "kept": "no entry that was read is gone, unless a server lost it or it expired",
    "samples": "frames are those of an undisturbed run, all of them when completed",
    "texts": "frames carry the texts of an undisturbed run",
    "asked": "every turn answers a request that was added",
    "answered": "each request has its end",
    "once": "no request is answered twice in a generation",
    "order": "requests of a session are answered in the order in which they were added",
    "reason": "each end has a reason that its client's controls explain",
    "deadline": "no turn starts after its deadline",
    "stop": "a stop is followed within 1 s, with nothing but ends after it",
    "pause": "a pause is followed within 0.5 s",
    "goes on": "no turn hangs",
    "served": "no request waits for long while slots are free",
    "readers": "slow and late readers read what the recorder read",
    "client": "the Python client raises nothing that no fault explains",
    "capacity": "all workers and slots are back within 5 s of a fault's end",
    "ttl": "every key has a TTL, but for those that the protocol names",
    "pending": "no request is pending when all is answered",
    "queued": "no request is queued when all is answered",
    "slots": "all slots are free when all is answered",
    "idle": "all sessions are idle when all is answered",
    "dead letters": "one for each turn that was rejected or failed, and no other",
}
"""What is checked, by the names that violations have."""


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """A broken promise. ``at`` is on the monotonic clock; unknown fields are empty."""

    promise: str
    session: str = ""
    request: str = ""
    turn: int = 0
    at: float = 0.0
    detail: str = ""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """The effect of one kind of fault. Pauses are each paused turn's longest, in seconds.

    ``affected`` counts turns during a fault; ``recovery`` is the longest time from a fault's end to
    full capacity, ``None`` where it was not measured.
    """

    fault: str
    injected: int
    skipped: int
    affected: int
    paused: int
    pause_p50: float
    pause_p95: float
    pause_longest: float
    recovery: float | None
    violations: int


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a run.

    ``ends`` counts turns by how they ended; ``notes`` lists what is allowed but worth knowing.
    """

    requests: int
    ends: dict[str, int]
    frames: int
    rows: tuple[Row, ...]
    violations: tuple[Violation, ...]
    notes: tuple[str, ...]
    take_over_p95: float
    """Of pauses after which another worker took over, in seconds."""
    recovery_p95: float
    recovery_longest: float

    @property
    def holds(self) -> bool:
        """Whether every promise was kept."""
        return not self.violations

    @property
    def by_promise(self) -> dict[str, int]:
        """How often each promise was broken."""
        return dict(Counter(violation.promise for violation in self.violations).most_common())

    def table(self, console: Console) -> None:
        """Print it."""
        table = Table(title="Faults and their effect", title_justify="left")
        columns = ("fault", "times", "skipped", "turns affected", "turns with a pause")
        columns += ("p50, s", "p95, s", "longest, s", "full again, s", "violations")
        for column in columns:
            table.add_column(column, justify="left" if column == "fault" else "right")
        for row in self.rows:
            table.add_row(
                row.fault,
                *(str(count) for count in (row.injected, row.skipped, row.affected, row.paused)),
                *(f"{s:.2f}" for s in (row.pause_p50, row.pause_p95, row.pause_longest)),
                "" if row.recovery is None else f"{row.recovery:.1f}",
                str(row.violations),
            )
        console.print(table)
        ends = ", ".join(f"{count} {reason}" for reason, count in self.ends.items())
        console.print(f"{self.requests} requests: {ends}; {self.frames} frames", highlight=False)
        console.print(
            f"pause at take-over p95 {self.take_over_p95:.2f} s; full capacity after a fault: "
            f"p95 {self.recovery_p95:.1f} s, longest {self.recovery_longest:.1f} s",
            highlight=False,
        )
        for note in self.notes:
            console.print(f"note: {note}", highlight=False, markup=False)
        for one in self.violations[:SHOWN]:
            place = f"{one.session} {one.request} turn {one.turn} at {one.at:.3f}"
            said = f"VIOLATION {one.promise}: {place}: {one.detail}"
            console.print(said, highlight=False, markup=False)
        broken = ", ".join(f"{name}: {count}" for name, count in self.by_promise.items())
        console.print(f"violations: {len(self.violations)} {broken}".rstrip(), highlight=False)
