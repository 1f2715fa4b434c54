"""Checks of readers: all readers of a stream, at any time, read the same entries."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from verify.chaos.evidence import RECORDER, Entry, Evidence
from verify.chaos.journal import RolledBack
from verify.chaos.quiet_periods import QuietPeriods
from verify.chaos.stream_id import Id
from verify.chaos.verdict import Violation

WINDOW_S: Final = 55.0
"""An entry is kept for at least this long (the fleet keeps 60 s) while its session is live."""

LAST_WORDS_S: Final = 1.0
"""How much more one reader than another may have read just before a server lost data."""


def check_readers(session: str, evidence: Evidence, quiet: QuietPeriods) -> Iterator[Violation]:
    """Compare the other readers of a session with the recorder."""
    recorded: dict[Id, list[Entry]] = defaultdict(list)
    for entry in evidence.recorded(session):
        if isinstance(entry, Entry):
            recorded[entry.id].append(entry)
    ids = sorted(recorded)
    places = {one: index for index, one in enumerate(ids)}
    for reader, readings in evidence.readings[session].items():
        if reader == RECORDER:
            continue
        last: Entry | None = None
        for reading in readings:
            if isinstance(reading, RolledBack):
                last = None
                continue
            # Of what a server delivered just before it lost data, one reader may have read more.
            if reading.id in recorded or not quiet.forgot(reading.at, reading.at + LAST_WORDS_S):
                yield from _same(reader, session, reading, recorded)
            if last is not None and reading.id > last.id and not quiet.forgot(last.at, reading.at):
                between = ids[places.get(last.id, 0) + 1 : places.get(reading.id, 0)]
                missed = [
                    one
                    for one in between
                    if reading.at - recorded[one][0].at < WINDOW_S
                    and recorded[one][0].at < reading.at
                    and (reader != "client" or recorded[one][0].kind == "frame")
                ]
                if missed:
                    said = f"{reader} read {last.id}, then {reading.id}: {missed[0]} is missing"
                    yield _broken("readers", session, reading, said)
            last = reading


def _same(
    reader: str, session: str, entry: Entry, recorded: dict[Id, list[Entry]]
) -> Iterator[Violation]:
    known = recorded.get(entry.id)
    if known is None:
        yield _broken("readers", session, entry, f"{reader} alone read {entry.id}")
    elif all(one.content != entry.content for one in known):
        yield _broken("readers", session, entry, f"{reader} read something else at {entry.id}")


def _broken(promise: str, session: str, entry: Entry, detail: str) -> Violation:
    return Violation(
        promise=promise, session=session, turn=entry.id.turn, at=entry.at, detail=detail
    )
