"""Piper with several sessions that start at the same moment: each one's wait for a first frame.

All requests are added in one write. Turns are paced as a listener hears them (the default lead),
and each is heard to its end, so that a first frame that came early at the cost of a gap later on
is seen: a frame that arrives after its place in real time is an underrun.
"""

import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from bench.audio_stream import Kind, entries
from bench.percentiles import Percentiles
from bench.piper import MODEL, TEXTS
from bench.plan import Plan
from bench.report import Figure, Report, figure
from bench.resp import pack
from bench.testbed import PIPER, Testbed, testbed
from voicefleet.schemas.audio import FRAME_MS

SESSIONS: Final = (1, 4, 8)
"""That start together."""

MOST_LATE_MS: Final = FRAME_MS
"""A frame that arrives later than this after its place is an underrun."""

_END_S: Final = 120.0


class Listened(msgspec.Struct, frozen=True, kw_only=True):
    """One session's turn: ms to its first frame, how late its latest frame was, its length in s."""

    text: str
    first_ms: float
    late_ms: float
    audio_s: float


def run(plan: Plan) -> Report:
    """Start 4 and 8 sessions together, twice ``plan.rounds`` times, and one with each text."""
    with testbed(PIPER, MODEL) as bed:
        _round(bed, "warm-up", 1, 0)
        points = {
            str(n): [
                one
                for number in range(plan.rounds * (len(TEXTS) if n == 1 else 2))
                for one in _round(bed, f"{n}-{number}", n, number)
            ]
            for n in SESSIONS
        }
    return Report(
        bench="piper_together",
        title="Piper, sessions that start together: request to first frame",
        conditions=(
            f"{MODEL}; {len(TEXTS)} texts of {min(map(len, TEXTS.values()))} to "
            f"{max(map(len, TEXTS.values()))} characters, in turn over the sessions",
            "all requests leave in one write; a new session for each; the default lead; worker "
            "(one inference thread for each core), server and reader share the machine's cores",
            "a round ends when all of its turns have been heard to the end; a frame that arrives "
            f"more than {MOST_LATE_MS} ms after its place in real time, counted from the first "
            "frame, makes the turn one with an underrun",
        ),
        figures=tuple(_figures(points)),
        series={n: msgspec.to_builtins(heard) for n, heard in points.items()},
    )


def _figures(points: dict[str, list[Listened]]) -> Iterator[Figure]:
    for n, heard in points.items():
        first = Percentiles.of(one.first_ms for one in heard)
        together = "1 session" if n == "1" else f"{n} sessions together"
        for which in ("p50", "p95", "max"):
            yield figure(
                f"{together}, first frame, {which}",
                getattr(first, which),
                "ms",
                samples=first.count,
            )
        late = [one.late_ms for one in heard if one.late_ms > MOST_LATE_MS]
        yield figure(f"{together}, turns with an underrun", len(late), "", samples=len(heard))
        yield figure(f"{together}, worst underrun", max(late, default=0.0), "ms")


def _round(bed: Testbed, name: str, sessions: int, shift: int) -> list[Listened]:
    """Start so many sessions at once and read all to their ends."""
    texts = list(TEXTS)
    chosen = [texts[(shift + i) % len(texts)] for i in range(sessions)]
    streams = [bed.keys.audio(f"together-{name}-{i}") for i in range(sessions)]
    adds = b"".join(
        pack(
            "XADD",
            bed.keys.requests(bed.model),
            "*",
            "session",
            f"together-{name}-{i}",
            "text",
            TEXTS[text],
        )
        for i, text in enumerate(chosen)
    )
    number = {stream.encode(): i for i, stream in enumerate(streams)}
    last: list[bytes] = [b"0-0"] * sessions
    arrivals: list[list[int]] = [[] for _ in range(sessions)]
    speaking = set(range(sessions))
    deadline = time.monotonic() + _END_S
    with bed.connect() as client, bed.connect() as reader:

        def read() -> None:
            open_ = sorted(speaking)
            names, ids = [streams[i] for i in open_], [last[i] for i in open_]
            reader.send(pack("XREAD", "BLOCK", 1000, "STREAMS", *names, *ids))

        read()
        # The server serves connections in any order: make sure that the reader blocks first.
        client.call("PING")
        begun = client.send(adds)
        while speaking:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(speaking)} of {sessions} turns did not end")
            reply, arrival = reader.receive()
            for stream in reply or ():
                _note(stream, arrival, number, last, arrivals, speaking)
            if speaking:
                read()
    return [
        Listened(
            text=text,
            first_ms=(times[0] - begun) / 1e6,
            late_ms=max((t - times[0]) / 1e6 - n * FRAME_MS for n, t in enumerate(times)),
            audio_s=len(times) * FRAME_MS / 1000,
        )
        for text, times in zip(chosen, arrivals, strict=True)
    ]


def _note(
    stream: list[Any],
    arrival: int,
    number: dict[bytes, int],
    last: list[bytes],
    arrivals: list[list[int]],
    speaking: set[int],
) -> None:
    """Record a reply's entries of one stream."""
    i = number[stream[0]]
    for entry in entries(stream):
        last[i] = entry.id
        if entry.kind is Kind.FRAME:
            arrivals[i].append(arrival)
        elif entry.kind is Kind.END:
            speaking.discard(i)
