"""What a client knows of its sessions: which turns began, how far they are, how they ended."""

import time
from collections.abc import Iterable, Sequence

import anyio

from verify.chaos.journal import Answered, Journal
from verify.chaos.reading import Entry
from verify.chaos.stream_id import Id


class Progress:
    """Of one request, as far as its session's stream was read."""

    def __init__(self) -> None:
        self.began = False
        self.frames = 0
        self.ended = ""
        """Why; empty before."""
        self.at = 0.0
        """Of the latest entry; monotonic clock."""


class Hearing:
    """One session's stream as its client hears it. Ends are put into the journal."""

    def __init__(self, session: str, journal: Journal) -> None:
        self._session = session
        self._journal = journal
        self.forgotten = 0
        """How often the server turned out to have forgotten what was read."""
        self._requests: dict[str, Progress] = {}
        self._speaking: dict[int, str] = {}
        self._changed = anyio.Event()

    def of(self, request: str) -> Progress:
        """How far it is."""
        return self._requests.setdefault(request, Progress())

    async def ended(self, requests: Iterable[str]) -> None:
        """Wait for the ends of all."""
        for request in requests:
            while not self.of(request).ended:
                await self._changed.wait()

    async def heard(self, request: str, frames: int) -> None:
        """Wait for so many frames, or the end."""
        progress = self.of(request)
        while progress.frames < frames and not progress.ended:
            await self._changed.wait()

    def take(self, entries: Sequence[Entry]) -> None:
        """What the stream says next."""
        now = time.monotonic()
        for entry in entries:
            name = entry.fields.get(b"request", b"").decode("utf-8", "replace")
            if b"pcm" not in entry.fields:
                self._speaking[entry.id.turn] = name
            progress = self.of(self._speaking.get(entry.id.turn, ""))
            progress.at = now
            progress.began = True
            if b"pcm" in entry.fields:
                progress.frames = entry.id.n
            elif entry.fields.get(b"event") == b"end":
                self.end(name, entry.fields.get(b"reason", b"?").decode("utf-8", "replace"))
        self.pulse()

    def end(self, request: str, reason: str) -> None:
        """A request's end was heard."""
        self.of(request).ended = reason
        answered = Answered(
            at=time.monotonic(), session=self._session, request=request, reason=reason
        )
        self._journal.write(answered)
        self.pulse()

    def forget(self) -> None:
        """The server lacks what was read: who has no end yet may have no request either."""
        self.forgotten += 1
        for progress in self._requests.values():
            if not progress.ended:
                progress.began = False
        self.pulse()

    def pulse(self) -> None:
        """Something changed: let those who wait look."""
        self._changed.set()
        self._changed = anyio.Event()


class Ears:
    """The hearing of all sessions, filled by one reading. A ``Listener``."""

    def __init__(self, sessions: Iterable[str], journal: Journal) -> None:
        self.of = {session: Hearing(session, journal) for session in sessions}

    def heard(self, session: str, entries: Sequence[Entry]) -> None:
        """See ``Listener``."""
        self.of[session].take(entries)

    def shrank(self, session: str, seen: Id, newest: Id | None) -> None:
        """See ``Listener``."""
        del seen, newest
        self.of[session].forget()

    def deaf(self, at: float, until: float) -> None:
        """See ``Listener``."""
