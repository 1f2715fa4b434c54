"""Any number of speaking sessions, all read by one listener."""

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
"""Requests are added at random moments within this time."""

START_PER_S: Final = 40
"""Requests a second where many sessions start: a lead of 400 ms makes each cost 20 frames."""

SETTLE_S: Final = 2.0
"""From the last request until its lead is published and the fleet is in a steady state."""


class LiveSessions(msgspec.Struct, frozen=True):
    """Sessions in mid-turn. ``listener`` reads all of them, in this order."""

    names: tuple[str, ...]
    listener: Listener


def long_text(seconds: float) -> str:
    """Text that the tone engine speaks for at least ``seconds``, if the protocol allows."""
    chars = min(int(seconds / SECONDS_PER_CHAR), MAX_TEXT)
    sentences = "".join(_SENTENCES)
    return (sentences * (chars // len(sentences) + 1))[:chars]


@contextmanager
def live_sessions(
    bed: Testbed, count: int, seconds: float, *, per_s: float | None = None
) -> Generator[LiveSessions]:
    """Let ``count`` sessions speak for at least ``seconds``, read from their first entry on.

    Their requests are added ``per_s`` a second, or at random moments within ``SPREAD_S``.
    """
    names = tuple(f"live-{i}" for i in range(count))
    moments = random.Random(count)
    if per_s is None:
        offsets = sorted(moments.uniform(0, SPREAD_S) for _ in names)
    else:
        offsets = [i / per_s for i in range(count)]
    text = long_text(seconds + max(offsets, default=0.0) + SETTLE_S)
    with (
        bed.connect() as connection,
        Listener(bed.server.port, [bed.keys.audio(name) for name in names]) as listener,
    ):
        begin = time.monotonic()
        for name, offset in zip(names, offsets, strict=True):
            time.sleep(max(0.0, begin + offset - time.monotonic()))
            request(connection, bed, name, text)
        time.sleep(SETTLE_S)
        yield LiveSessions(names, listener)


def request(connection: Connection, bed: Testbed, session: str, text: str) -> None:
    """Add one request with default settings."""
    connection.call("XADD", bed.keys.requests(bed.model), "*", "session", session, "text", text)
