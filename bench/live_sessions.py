"""Sessions that speak, as many as a measurement wants, one listener on all of them."""

import random
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import msgspec

from bench.listener import Listener
from bench.resp import Connection
from bench.testbed import Testbed
from voicefleet.schemas.request import MAX_TEXT
from voicefleet.worker.engines.tone.engine import SECONDS_PER_CHAR

_SENTENCES: Final = (
    "The fleet speaks for as long as it is asked to. ",
    "Every frame of this turn is twenty milliseconds long. ",
    "Nobody listens to the words, but their rhythm is that of a sentence. ",
)
SPREAD_S: Final = 1.5
"""Requests come in over this time, as they would from people."""

SETTLE_S: Final = 1.5
"""After the last request, until its lead has left and the fleet is in its stride."""


class LiveSessions(msgspec.Struct, frozen=True):
    """Sessions in mid-turn. ``listener`` hears all of them, in this order."""

    names: tuple[str, ...]
    listener: Listener


def long_text(seconds: float) -> str:
    """Text that the tone engine speaks for at least ``seconds``, if the protocol allows."""
    chars = min(int(seconds / SECONDS_PER_CHAR), MAX_TEXT)
    sentences = "".join(_SENTENCES)
    return (sentences * (chars // len(sentences) + 1))[:chars]


@contextmanager
def live_sessions(bed: Testbed, count: int, seconds: float) -> Generator[LiveSessions]:
    """Have ``count`` sessions speak for ``seconds`` or more, heard from their first entry on."""
    names = tuple(f"live-{i}" for i in range(count))
    text = long_text(seconds + SPREAD_S + SETTLE_S)
    moments = random.Random(count)
    with (
        bed.connect() as connection,
        Listener(bed.server.port, [bed.keys.audio(name) for name in names]) as listener,
    ):
        begin = time.monotonic()
        offsets = sorted(moments.uniform(0, SPREAD_S) for _ in names)
        for name, offset in zip(names, offsets, strict=True):
            time.sleep(max(0.0, begin + offset - time.monotonic()))
            request(connection, bed, name, text)
        time.sleep(SETTLE_S)
        yield LiveSessions(names, listener)


def request(connection: Connection, bed: Testbed, session: str, text: str) -> None:
    """Add one request with default settings."""
    connection.call("XADD", bed.keys.requests(bed.model), "*", "session", session, "text", text)
