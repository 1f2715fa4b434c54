"""The journals of a run, grouped by session and kind. Shares no code with the fleet."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from sys import intern
from typing import Final, Literal, TypeAlias

import msgspec

from verify.chaos import journal
from verify.chaos.journal import (
    Answered,
    Asked,
    Capacity,
    ClientFailed,
    ControlSet,
    Fault,
    FinalState,
    Heard,
    ReaderOutage,
    Reference,
    RolledBack,
    Wrote,
)
from verify.chaos.stream_id import Id

RECORDER: Final = "recorder"

SABOTAGE: Final = ("poison", "stumble", "falter", "hang", "gorge")
"""First words of utterance names (``poison-1``) that make the saboteur engine fail."""

NEVER_SPOKEN: Final = ("poison", "stumble", "gorge")
"""Those that fail on every attempt."""


class Entry(msgspec.Struct, gc=False):
    """An entry of an audio stream, first read at ``at``. Frames have ``digest`` and ``size``."""

    at: float
    id: Id
    kind: Literal["start", "frame", "end", "other"]
    fields: dict[str, str]
    digest: str
    size: int

    @property
    def content(self) -> tuple[object, ...]:
        """What must not depend on who wrote the entry, or when."""
        said = sorted(item for item in self.fields.items() if item[0] not in ("worker", "t"))
        return (self.kind, self.digest, self.size, *said)

    @property
    def t(self) -> int:
        """Server time of a start or end, in unix ms; 0 without one."""
        said = self.fields.get("t", "")
        return int(said) if said.isdecimal() else 0


Reading: TypeAlias = Entry | RolledBack
"""What a reader sees."""


class Request(msgspec.Struct):
    """All adds of a request under one name.

    ``places`` are the positions of its adds among the session's. Where a reply was lost or a server
    lost data, its place in the queue is anywhere from ``first`` to ``last``.
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
        """The first add; later ones are the same."""
        return self.asks[0]

    @property
    def at(self) -> float:
        """When it was first added, on the monotonic clock."""
        return self.asks[0].at

    @property
    def acknowledged(self) -> bool:
        """Whether the server acknowledged an add."""
        return any(ask.entry is not None for ask in self.asks)

    @property
    def field(self) -> dict[str, str]:
        """Its fields without the text."""
        return self.asked.fields

    @property
    def sabotage(self) -> str:
        """What the saboteur engine does with it; empty for others."""
        word = self.asked.utterance.partition("-")[0]
        return word if word in SABOTAGE else ""

    @property
    def deadline_ms(self) -> int | None:
        """Unix ms."""
        said = self.field.get("deadline_ms")
        return None if said is None else int(said)

    @property
    def sample_rate(self) -> int:
        """The requested rate in Hz."""
        return int(self.field.get("sample_rate", "48000"))

    @property
    def is_streamed(self) -> bool:
        """Whether its text came through a text stream."""
        return self.field.get("stream") == "1"

    def surely_before(self, other: "Request") -> bool:
        """Whether it precedes the other in the queue, whatever became of lost replies."""
        return self.last < other.first

    def surely_after(self, other: "Request") -> bool:
        """Whether it follows the other in the queue, whatever became of lost replies."""
        return other.last < self.first


class Evidence:
    """All events of a run, by session where they belong to one, each list in order."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.references: dict[str, Reference] = {}
        self.requests: dict[str, dict[str, Request]] = defaultdict(dict)
        self.controls: dict[str, list[ControlSet]] = defaultdict(list)
        self.readings: dict[str, dict[str, list[Reading]]] = defaultdict(lambda: defaultdict(list))
        self.faults: list[Fault] = []
        self.outages: list[ReaderOutage] = []
        self.client_failures: list[ClientFailed] = []
        self.capacity: list[Capacity] = []
        self.final_state: FinalState | None = None
        self.answered: dict[str, set[str]] = defaultdict(set)
        """The requests whose ends their client read, by session."""
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
                case ControlSet():
                    self.controls[event.session].append(event)
                case RolledBack():
                    self.readings[event.session][event.reader].append(event)
                case Reference():
                    self.references[event.utterance] = event
                case Fault():
                    self.faults.append(event)
                case ReaderOutage():
                    self.outages.append(event)
                case ClientFailed():
                    self.client_failures.append(event)
                case Capacity():
                    self.capacity.append(event)
                case FinalState():
                    self.final_state = event
        for piece in wrote:
            self.requests[piece.session][piece.request].wrote.append(piece)
        self.faults.sort(key=lambda fault: fault.at)
        self.capacity.sort(key=lambda capacity: capacity.at)
        for controls in self.controls.values():
            controls.sort(key=lambda wish: wish.at)
        self._doubt_forgotten()

    @property
    def sessions(self) -> list[str]:
        """All sessions that occur in the journals."""
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
        """Widen the places of requests that a server may have lost.

        Of such a request only a later copy may be left; its place is that of any of its adds.
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
