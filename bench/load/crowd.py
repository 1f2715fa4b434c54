"""Living sessions by the hundred: they begin at a rate that people have, and speak for long."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from bench.listener import Listener
from bench.live_sessions import LiveSessions, long_text, request
from bench.load.fleet import Fleet

BEGIN_PER_S: Final = 40
SETTLE_S: Final = 2.0
"""After the last request, until its lead has left and the fleet is in its stride."""


@contextmanager
def crowd(on: Fleet, count: int, seconds: float, prefix: str = "live") -> Generator[LiveSessions]:
    """Have ``count`` sessions speak for ``seconds`` or more, heard from their first entry on.

    They begin one after another, ``BEGIN_PER_S`` a second: a lead of 400 ms makes each beginning
    as dear as 20 frames.
    """
    names = tuple(f"{prefix}-{i}" for i in range(count))
    text = long_text(seconds + count / BEGIN_PER_S + SETTLE_S)
    streams = [on.keys.audio(name) for name in names]
    with on.connect() as connection, Listener(on.server.port, streams) as listener:
        begin = time.monotonic()
        for i, name in enumerate(names):
            time.sleep(max(0.0, begin + i / BEGIN_PER_S - time.monotonic()))
            request(connection, on.bed, name, text)
        time.sleep(SETTLE_S)
        yield LiveSessions(names, listener)
