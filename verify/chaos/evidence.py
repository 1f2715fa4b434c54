"""The journals of a run, sorted by what they are about. Shares no code with the fleet."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from sys import intern
from typing import Final, Literal, TypeAlias

import msgspec

from verify.chaos import journal
from verify.chaos.journal import (
    Aftermath,
    Answered,
    Asked,
    Capacity,
    Complained,
    Deaf,
    Fault,
    Heard,
    Reference,
    Shrank,
    Wished,
    Wrote,
)
from verify.chaos.stream_id import Id

RECORDER: Final = "recorder"

SABOTAGE: Final = ("poison", "stumble", "falter", "hang", "gorge")
"""Utterances named so (``poison-1``) do harm to who speaks them, and may fail."""

NEVER_SPOKEN: Final = ("poison", "stumble", "gorge")
"""Those of them that fail each time."""


class Entry(msgspec.Struct, gc=False):
    """An entry of an audio stream and when it was first heard. Frames: ``digest``, ``size``."""

    at: float
    id: Id
    kind: Literal["start", "frame", "end", "other"]
    fields: dict[str, str]
    digest: str
    size: int

    @property
    def content(self) -> tuple[object, ...]:
        """What is the same whoever wrote it, and whenever."""
        said = sorted(item for item in self.fields.items() if item[0] not in ("worker", "t"))
        return (self.kind, self.digest, self.size, *said)

    @property
    def t(self) -> int:
        """Server time of a start or end, unix ms."""
        said = self.fields.get("t", "")
        return int(said) if said.isdecimal() else 0


Reading: TypeAlias = Entry | Shrank
"""What happens to a reader."""


class Request(msgspec.Struct):
    """All that a client asked under one name.

    ``places`` count the session's asks in their order; where a reply was lost or a server forgot,
    it stands anywhere from ``first`` to ``last``.
    """

    session: str
    name: str
    asks: list[Asked]
    places: list[int]
    first: int
    last: int
    wrote: list[Wrote]

    @property
    def asked(self) -> Asked:
        """What was asked; each time the same."""
        return self.asks[0]

    @property
    def at(self) -> float:
        """When it was first asked."""
        return self.asks[0].at

    @property
    def acknowledged(self) -> bool:
        """Whether the server is known to have got it."""
        return any(ask.entry is not None for ask in self.asks)

    @property
    def field(self) -> dict[str, str]:
        """Its fields, but for the text."""
        return self.asked.fields

    @property
    def sabotage(self) -> str:
        """What it does to who speaks it; empty for nearly all."""
        word = self.asked.utterance.partition("-")[0]
        return word if word in SABOTAGE else ""

    @property
    def deadline_ms(self) -> int | None:
        """Unix ms."""
        said = self.field.get("deadline_ms")
        return None if said is None else int(said)

    @property
    def sample_rate(self) -> int:
        """As asked."""
        return int(self.field.get("sample_rate", "48000"))

    @property
    def is_streamed(self) -> bool:
        """Whether its text was written while it was spoken."""
        return self.field.get("stream") == "1"

    def surely_before(self, other: "Request") -> bool:
        """Whether it was added first, whatever became of lost replies."""
        return self.last < other.first

    def surely_after(self, other: "Request") -> bool:
        """The other way round."""
        return other.last < self.first


class Evidence:
    """All events of a run, by session where they concern one, each list in its order."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.references: dict[str, Reference] = {}
        self.requests: dict[str, dict[str, Request]] = defaultdict(dict)
        self.wishes: dict[str, list[Wished]] = defaultdict(list)
        self.readings: dict[str, dict[str, list[Reading]]] = defaultdict(lambda: defaultdict(list))
        self.faults: list[Fault] = []
        self.deaf: list[Deaf] = []
        self.complaints: list[Complained] = []
        self.capacity: list[Capacity] = []
        self.aftermath: Aftermath | None = None
        self.answered: dict[str, set[str]] = defaultdict(set)
        """Of each session: the requests whose ends their client heard."""
        self._places: dict[str, int] = defaultdict(int)
        wrote: list[Wrote] = []
        for event in journal.read(paths):
            match event:
                case Heard():
                    readings = self.readings[event.session][event.reader]
                    readings.append(_entry(event))
                case Asked():
                    self._ask(event)
                case Answered():
                    self.answered[event.session].add(event.request)
                case Wrote():
                    wrote.append(event)
                case Wished():
                    self.wishes[event.session].append(event)
                case Shrank():
                    self.readings[event.session][event.reader].append(event)
                case Reference():
                    self.references[event.utterance] = event
                case Fault():
                    self.faults.append(event)
                case Deaf():
                    self.deaf.append(event)
                case Complained():
                    self.complaints.append(event)
                case Capacity():
                    self.capacity.append(event)
                case Aftermath():
                    self.aftermath = event
        for piece in wrote:
            self.requests[piece.session][piece.request].wrote.append(piece)
        self.faults.sort(key=lambda fault: fault.at)
        self.capacity.sort(key=lambda capacity: capacity.at)
        for wishes in self.wishes.values():
            wishes.sort(key=lambda wish: wish.at)
        self._doubt_forgotten()

    @property
    def sessions(self) -> list[str]:
        """All that anything is known of."""
        return sorted({*self.requests, *self.readings})

    def recorded(self, session: str) -> list[Reading]:
        """What the recorder read."""
        return self.readings[session].get(RECORDER, [])

    def _ask(self, ask: Asked) -> None:
        place = self._places[ask.session]
        self._places[ask.session] += 1
        requests = self.requests[ask.session]
        known = requests.get(ask.request)
        if known is None:
            requests[ask.request] = Request(
                ask.session, ask.request, [ask], [place], first=place, last=place, wrote=[]
            )
            return
        if not known.acknowledged:  # what was sent before may be there, or may not
            known.last = place
        known.asks.append(ask)
        known.places.append(place)

    def _doubt_forgotten(self) -> None:
        """A server that forgot may know only of a later copy.

        What was added in the midst of it may have been read from the one that was to be forgotten,
        which nobody else knows of: it stands anywhere.
        """
        forgetting = [fault for fault in self.faults if fault.forgets != "nothing"]
        for session, requests in self.requests.items():
            for request in requests.values():
                again = request.asks[-1].at
                if any(request.at < fault.until and fault.at < again for fault in forgetting):
                    request.last = request.places[-1]
                if any(fault.at <= request.at <= fault.until for fault in forgetting):
                    request.first, request.last = 0, self._places[session]


def _entry(heard: Heard) -> Entry:
    return Entry(
        heard.at,
        Id(heard.turn, heard.n),
        heard.kind,
        heard.fields,
        intern(heard.digest),
        heard.size,
    )
