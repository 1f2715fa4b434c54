"""What is promised of readers: whoever reads a stream, and whenever, reads the same."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from verify.chaos.evidence import RECORDER, Entry, Evidence
from verify.chaos.journal import Shrank
from verify.chaos.quiet_periods import Calm
from verify.chaos.stream_id import Id
from verify.chaos.verdict import Violation

WINDOW_S: Final = 55.0
"""An entry is kept at least for so long (60 s) while its session lives."""

LAST_WORDS_S: Final = 1.0
"""One reader may hear so much of a server's last moments more than another."""


def check_readers(session: str, evidence: Evidence, calm: Calm) -> Iterator[Violation]:
    """The other readers of a session, against the recorder."""
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
            if isinstance(reading, Shrank):
                last = None
                continue
            # What a server said last before it forgot, only one of two readers may have heard.
            if reading.id in recorded or not calm.forgot(reading.at, reading.at + LAST_WORDS_S):
                yield from _same(reader, session, reading, recorded)
            if last is not None and reading.id > last.id and not calm.forgot(last.at, reading.at):
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
