"""The journal of a run: a JSON line per event. Every process of the run writes one.

Clients, the recorder and the fault injector write events as they happen; the checker interprets
them. Times are seconds on the machine's monotonic clock, which all processes share.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, Self, TypeAlias

import msgspec


class Reference(msgspec.Struct, frozen=True, kw_only=True, tag="reference"):
    """An utterance spoken without faults: each frame's digest of its PCM, and its text."""

    utterance: str
    digests: list[str]
    texts: list[str | None]


class Asked(msgspec.Struct, frozen=True, kw_only=True, tag="asked"):
    """A client added a request, at ``at`` or soon after.

    ``entry`` is the entry's id, ``None`` where the reply was lost, and empty where the client that
    got the reply does not expose the id.
    """

    at: float
    session: str
    request: str
    model: str
    utterance: str
    fields: dict[str, str]
    """The request's fields but for its text."""
    entry: str | None
    again: bool = False
    """Whether it is a repetition: for lack of an answer, or to test deduplication."""
    invalid: bool = False
    """Whether it breaks the protocol on purpose."""


class Answered(msgspec.Struct, frozen=True, kw_only=True, tag="answered"):
    """A client read the end of its request. The recorder may have missed it, where a server lost it
    at once."""

    at: float
    session: str
    request: str
    reason: str


class Wrote(msgspec.Struct, frozen=True, kw_only=True, tag="wrote"):
    """A client added to a text stream; ``piece`` counts the utterance's pieces from 0."""

    at: float
    session: str
    request: str
    piece: int
    ended: bool


class ControlSet(msgspec.Struct, frozen=True, kw_only=True, tag="control_set"):
    """A client set the session's control key, or deleted it (``value`` is empty)."""

    at: float
    session: str
    value: str


class Heard(msgspec.Struct, frozen=True, kw_only=True, tag="heard"):
    """An entry of an audio stream, as a reader got it.

    ``fields`` has all but ``pcm``; ``digest`` and ``size`` (bytes) are of the PCM. ``reader`` tells
    apart the recorder and others (slow, late). An entry read twice is written twice.
    """

    at: float
    reader: str
    session: str
    turn: int
    n: int
    kind: Literal["start", "frame", "end", "other"]
    fields: dict[str, str]
    digest: str = ""
    size: int = 0


class RolledBack(msgspec.Struct, frozen=True, kw_only=True, tag="rolled_back"):
    """A stream lacks entries that a reader has read (``newest`` is empty if it is gone)."""

    at: float
    reader: str
    session: str
    seen: str
    newest: str


class ReaderOutage(msgspec.Struct, frozen=True, kw_only=True, tag="reader_outage"):
    """A reader could not read in this time: it had no server, or no processor."""

    at: float
    until: float
    reader: str


class ClientFailed(msgspec.Struct, frozen=True, kw_only=True, tag="client_failed"):
    """The Python client raised an error (``"StreamGap: ..."``) though it was used correctly."""

    at: float
    session: str
    request: str
    error: str


class Fault(msgspec.Struct, frozen=True, kw_only=True, tag="fault"):
    """A fault, once it is over. ``target`` is a worker's name, a server, or empty.

    ``forgets``: what a server may have lost by it: nothing, the newest entries, or all.
    ``skipped`` says why it could not be injected here.
    """

    at: float
    until: float
    kind: str
    target: str
    forgets: Literal["nothing", "tail", "all"] = "nothing"
    note: str = ""
    skipped: str = ""


class Capacity(msgspec.Struct, frozen=True, kw_only=True, tag="capacity"):
    """The sum of the workers' records at a moment (a few times a second)."""

    at: float
    ready: int
    slots_total: int
    slots_free: int
    speaking: int


class FinalState(msgspec.Struct, frozen=True, kw_only=True, tag="final_state"):
    """The state of the servers after the last request was answered."""

    at: float
    without_ttl: list[str]
    """Keys that have no TTL but should."""
    pending: dict[str, int]
    """By model: entries still pending, for any consumer."""
    queued: dict[str, int]
    """By model: the queue's length."""
    slots: dict[str, tuple[int, int]]
    """By worker: free slots, all slots."""
    dead_letters: list[dict[str, str]]
    live_sessions: list[str]
    """Sessions whose state is other than ``idle``."""


Event: TypeAlias = (
    Reference
    | Asked
    | Answered
    | Wrote
    | ControlSet
    | Heard
    | RolledBack
    | ReaderOutage
    | ClientFailed
    | Fault
    | Capacity
    | FinalState
)


class Journal:
    """Writes events to a file; readable while it grows. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=1 << 16)
        self._encoder = msgspec.json.Encoder()

    def write(self, event: Event) -> None:
        """Add an event."""
        self._file.write(self._encoder.encode(event) + b"\n")

    def flush(self) -> None:
        """Flush buffered events to the file."""
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read(paths: Iterable[Path]) -> Iterator[Event]:
    """All events of all files, file by file. An incomplete last line is ignored."""
    decoder = msgspec.json.Decoder(Event)
    for path in paths:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield decoder.decode(line)
