"""What happened in a run, as it happened: one JSON line for each event, written by every process.

Nothing here is interpreted: clients, the recorder and the faults write, the judge reads. Times are
seconds on the machine's monotonic clock, which all processes share.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias

import msgspec


class Reference(msgspec.Struct, frozen=True, kw_only=True, tag="reference"):
    """How an utterance sounds undisturbed: a digest of each frame's PCM, the text it carries."""

    utterance: str
    digests: list[str]
    texts: list[str | None]


class Asked(msgspec.Struct, frozen=True, kw_only=True, tag="asked"):
    """A client added a request, at ``at`` or soon after.

    ``entry`` is ``None`` where the reply was lost: nobody knows. It is empty where the request was
    acknowledged to a client that does not tell its id.
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
    """The same request as before, because no answer came, or to try the fleet."""
    invalid: bool = False
    """The protocol does not allow it, and the client knows."""


class Answered(msgspec.Struct, frozen=True, kw_only=True, tag="answered"):
    """A client heard the end of its request. The recorder may have been late for it, where a server
    forgot it a moment later."""

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


class Wished(msgspec.Struct, frozen=True, kw_only=True, tag="wished"):
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


class Shrank(msgspec.Struct, frozen=True, kw_only=True, tag="shrank"):
    """A stream's newest id is behind what a reader has seen (``newest`` empty: no stream)."""

    at: float
    reader: str
    session: str
    seen: str
    newest: str


class Deaf(msgspec.Struct, frozen=True, kw_only=True, tag="deaf"):
    """A reader could not listen in this time: it had no server, or no processor."""

    at: float
    until: float
    reader: str


class Complained(msgspec.Struct, frozen=True, kw_only=True, tag="complained"):
    """The Python client raised an error (``"StreamGap: ..."``) at one who used it rightly."""

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
    """What the workers' records said at a moment (a few times a second)."""

    at: float
    ready: int
    slots_total: int
    slots_free: int
    speaking: int


class Aftermath(msgspec.Struct, frozen=True, kw_only=True, tag="aftermath"):
    """The state of the server when all was answered and quiet."""

    at: float
    without_ttl: list[str]
    """Keys that should have had one."""
    pending: dict[str, int]
    """Of each model's queue: entries still pending, in anybody's name."""
    queued: dict[str, int]
    """Of each model's queue: its length."""
    slots: dict[str, tuple[int, int]]
    """Of each worker: slots free, slots in all."""
    dead_letters: list[dict[str, str]]
    live_sessions: list[str]
    """Sessions whose state is other than ``idle``."""


Event: TypeAlias = (
    Reference
    | Asked
    | Answered
    | Wrote
    | Wished
    | Heard
    | Shrank
    | Deaf
    | Complained
    | Fault
    | Capacity
    | Aftermath
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
        """Hand what was written to the system."""
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def read(paths: Iterable[Path]) -> Iterator[Event]:
    """All events of all files, file by file. A last line cut off in mid-write is left out."""
    decoder = msgspec.json.Decoder(Event)
    for path in paths:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield decoder.decode(line)
