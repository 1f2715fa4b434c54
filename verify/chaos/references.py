"""Records each utterance without faults, as the reference for all turns."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import anyio

from verify.chaos.journal import Journal, Reference
from verify.chaos.plan import Plan
from verify.chaos.reading import Entry, Reading
from verify.chaos.recorder import digest
from verify.chaos.request_writer import Order, RequestWriter
from verify.chaos.script import Ask
from verify.chaos.stream_id import Id
from verify.chaos.utterances import NEVER_SPOKEN, Utterance
from voicefleet.schemas.keys import Keys
from voicefleet.wire.connect import connect
from voicefleet.wire.endpoint import RedisConfig, resolve

TRIES: Final = 8
"""How often an utterance of the saboteur is tried: its first attempts may fail."""

TIMEOUT_S: Final = 60.0
AT_ONCE: Final = 8


class NoReferenceError(RuntimeError):
    """An utterance was not spoken to its end, though there were no faults."""


async def make_references(url: str, plan: Plan, journal: Journal) -> None:
    """Speak each utterance in a session of its own and write its reference into the journal.

    Sabotage that fails on every attempt, or on the first ``TRIES``, has none.

    Raises:
        NoReferenceError: Another one was not spoken to its end.
    """
    keys = Keys()
    spoken = [one for one in plan.utterances.values() if one.sabotage not in NEVER_SPOKEN]
    takes = _Takes(_session(one, attempt) for one in spoken for attempt in range(_tries(one)))
    async with connect(resolve(RedisConfig(url=url))) as topology:
        # These requests are not part of the run: they go into no journal.
        with Journal(Path(os.devnull)) as unseen:
            writer = RequestWriter(topology.client, keys, unseen)
            limit = anyio.Semaphore(AT_ONCE)
            async with anyio.create_task_group() as reading:
                reading.start_soon(Reading(topology, keys, takes.of, takes).run)
                async with anyio.create_task_group() as tasks:
                    for utterance in spoken:
                        tasks.start_soon(_speak, utterance, writer, takes, journal, limit)
                reading.cancel_scope.cancel()
    journal.flush()


class _Take:
    """What one session spoke."""

    def __init__(self) -> None:
        self.digests: list[str] = []
        self.texts: list[str | None] = []
        self.reason = ""
        self.over = anyio.Event()


class _Takes:
    """All sessions' takes, filled by a reading. A ``Listener``."""

    def __init__(self, sessions: Iterable[str]) -> None:
        self.of = {session: _Take() for session in sessions}

    def heard(self, session: str, entries: Sequence[Entry]) -> None:
        take = self.of[session]
        for entry in entries:
            pcm = entry.fields.get(b"pcm")
            if pcm is not None:
                text = entry.fields.get(b"text")
                take.digests.append(digest(pcm))
                take.texts.append(None if text is None else text.decode())
            elif entry.fields.get(b"event") == b"end":
                take.reason = entry.fields[b"reason"].decode()
                take.over.set()

    def rolled_back(self, session: str, seen: Id, newest: Id | None) -> None:
        raise NoReferenceError(f"{session}: the server forgot {seen}, it is at {newest}")

    def outage(self, at: float, until: float) -> None:
        """Nothing is lost: it is read later."""


async def _speak(
    utterance: Utterance,
    writer: RequestWriter,
    takes: _Takes,
    journal: Journal,
    limit: anyio.Semaphore,
) -> None:
    reason = ""
    async with limit:
        for attempt in range(_tries(utterance)):
            session = _session(utterance, attempt)
            ask = Ask(request="reference", utterance=utterance.name, lead_ms=0)
            await writer.add([Order.of(session, utterance.model, ask, utterance)])
            if utterance.streamed:
                await writer.write(session, ask.request, utterance.pieces, end=True)
            take = takes.of[session]
            with anyio.move_on_after(TIMEOUT_S):
                await take.over.wait()
            reason = take.reason or "no end"
            if reason == "completed":
                found = Reference(utterance=utterance.name, digests=take.digests, texts=take.texts)
                journal.write(found)
                return
    if not utterance.sabotage:
        raise NoReferenceError(f"{utterance.name}: {reason}")


def _tries(utterance: Utterance) -> int:
    return TRIES if utterance.sabotage else 1


def _session(utterance: Utterance, attempt: int) -> str:
    return f"reference:{utterance.name}:{attempt}"
