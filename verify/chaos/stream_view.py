"""What a client has read of its sessions: which turns began, their frames, their ends."""

import time
from collections.abc import Iterable, Sequence

import anyio

from verify.chaos.journal import Answered, Journal
from verify.chaos.reading import Entry
from verify.chaos.stream_id import Id


class Progress:
    """The progress of one request."""

    def __init__(self) -> None:
        self.began = False
        self.frames = 0
        self.ended = ""
        """The end's reason; empty before."""
        self.at = 0.0
        """Arrival of the latest entry, on the monotonic clock."""


class StreamView:
    """One session's stream as its client reads it. Ends go into the journal."""

    def __init__(self, session: str, journal: Journal) -> None:
        self._session = session
        self._journal = journal
        self.forgotten = 0
        """How often the server turned out to have lost entries."""
        self._requests: dict[str, Progress] = {}
        self._speaking: dict[int, str] = {}
        self._changed = anyio.Event()

    def of(self, request: str) -> Progress:
        """The progress of a request."""
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
        """Take the stream's next entries."""
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
        """Note a request's end."""
        self.of(request).ended = reason
        answered = Answered(
            at=time.monotonic(), session=self._session, request=request, reason=reason
        )
        self._journal.write(answered)
        self.pulse()

    def forget(self) -> None:
        """The server lost entries: open requests may be lost too."""
        self.forgotten += 1
        for progress in self._requests.values():
            if not progress.ended:
                progress.began = False
        self.pulse()

    def pulse(self) -> None:
        """Wake all who wait for a change."""
        self._changed.set()
        self._changed = anyio.Event()


class StreamViews:
    """The views of all sessions. A ``Listener``."""

    def __init__(self, sessions: Iterable[str], journal: Journal) -> None:
        self.of = {session: StreamView(session, journal) for session in sessions}

    def heard(self, session: str, entries: Sequence[Entry]) -> None:
        """See ``Listener``."""
        self.of[session].take(entries)

    def rolled_back(self, session: str, seen: Id, newest: Id | None) -> None:
        """See ``Listener``."""
        del seen, newest
        self.of[session].forget()

    def outage(self, at: float, until: float) -> None:
        """See ``Listener``."""
