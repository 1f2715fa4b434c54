"""The recorder: a process that writes every entry of every audio stream into a journal.

``recording`` starts it. It ends when its stdin does, so it never outlives its parent.
"""

import sys
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Final

import anyio
import msgspec
from anyio import to_thread

from bench.testbed import ROOT
from verify.chaos.journal import Heard, Journal, ReaderOutage, RolledBack
from verify.chaos.reading import Entry, Reading
from verify.chaos.stream_id import Id
from voicefleet.schemas.keys import Keys
from voicefleet.wire.connect import connect
from voicefleet.wire.endpoint import RedisConfig, resolve

READER: Final = "recorder"

_READY: Final = b"reading\n"
_START_S: Final = 20.0
_DRAIN_S: Final = 0.5
"""How long it reads on at the end, to get all that was written before."""

_FLUSH_S: Final = 0.5


class Order(msgspec.Struct, frozen=True):
    """What to record: the first line of stdin, as JSON."""

    url: str
    sessions: tuple[str, ...]
    path: str


def heard(session: str, entry: Entry, at: float, reader: str) -> Heard:
    """The journal's event for an entry."""
    fields = {
        name.decode("utf-8", "replace"): value.decode("utf-8", "replace")
        for name, value in entry.fields.items()
        if name != b"pcm"
    }
    pcm = entry.fields.get(b"pcm")
    event = fields.get("event")
    kind = "frame" if pcm is not None else "start" if event == "start" else "other"
    return Heard(
        at=at,
        reader=reader,
        session=session,
        turn=entry.id.turn,
        n=entry.id.n,
        kind="end" if pcm is None and event == "end" else kind,
        fields=fields,
        digest="" if pcm is None else digest(pcm),
        size=0 if pcm is None else len(pcm),
    )


def digest(pcm: bytes) -> str:
    """The digest of a frame's PCM."""
    return blake2b(pcm, digest_size=8).hexdigest()


class Recorder:
    """A ``Listener`` that writes a journal, under the name ``reader``."""

    def __init__(self, journal: Journal, reader: str = READER) -> None:
        self._journal = journal
        self._reader = reader

    def heard(self, session: str, entries: Sequence[Entry]) -> None:
        """See ``Listener``."""
        at = time.monotonic()
        for entry in entries:
            self._journal.write(heard(session, entry, at, self._reader))

    def rolled_back(self, session: str, seen: Id, newest: Id | None) -> None:
        """See ``Listener``."""
        said = "" if newest is None else str(newest)
        self._journal.write(
            RolledBack(
                at=time.monotonic(),
                reader=self._reader,
                session=session,
                seen=str(seen),
                newest=said,
            )
        )

    def outage(self, at: float, until: float) -> None:
        """See ``Listener``."""
        self._journal.write(ReaderOutage(at=at, until=until, reader=self._reader))


@asynccontextmanager
async def recording(url: str, sessions: Iterable[str], path: Path) -> AsyncGenerator[None]:
    """Record the sessions' streams while the block runs.

    Raises:
        RuntimeError: The recorder did not start, or died.
    """
    order = Order(url, tuple(sessions), str(path))
    command = [sys.executable, "-m", "verify.chaos.recorder"]
    async with await anyio.open_process(command, stderr=None, cwd=ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.send(msgspec.json.encode(order) + b"\n")
        try:
            with anyio.fail_after(_START_S):
                ready = await process.stdout.receive()
        except (TimeoutError, anyio.EndOfStream):
            ready = b""
        if ready != _READY:
            process.kill()
            raise RuntimeError("the recorder did not start")
        try:
            yield
        finally:
            if process.returncode is not None:
                raise RuntimeError(f"the recorder died with status {process.returncode}")
            await process.stdin.aclose()
            with anyio.CancelScope(shield=True), anyio.move_on_after(_START_S):
                await process.wait()


async def _record() -> None:
    line = await to_thread.run_sync(sys.stdin.buffer.readline)
    order = msgspec.json.decode(line, type=Order)
    with Journal(Path(order.path)) as journal:
        async with connect(resolve(RedisConfig(url=order.url))) as topology:
            reading = Reading(topology, Keys(), order.sessions, Recorder(journal))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(reading.run)
                tasks.start_soon(_flush, journal)
                sys.stdout.buffer.write(_READY)
                sys.stdout.buffer.flush()
                await to_thread.run_sync(sys.stdin.buffer.read)  # until it ends
                await anyio.sleep(_DRAIN_S)
                tasks.cancel_scope.cancel()


async def _flush(journal: Journal) -> None:
    """Flush the journal now and then, so that it survives a crash."""
    while True:
        await anyio.sleep(_FLUSH_S)
        journal.flush()


if __name__ == "__main__":
    anyio.run(_record)
