"""A process that reads many sessions with one multiplexed XREAD and records arrival times.

An orchestrator would use one reader for all sessions, too. It is a process of its own, with garbage
collection off, so that it delays neither the fleet nor its own timestamps. Its cost is reported
beside what it measured.
"""

import gc
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection as Pipe
from multiprocessing.sharedctypes import Synchronized
from typing import Any, Final, Self

import numpy as np

from bench.audio_stream import Kind, entries
from bench.resp import Connection, pack

_BLOCK_MS: Final = 100
_spawn = multiprocessing.get_context("spawn")


class Arrivals:
    """All entries in order of arrival, as arrays of one length.

    ``session`` counts the listener's sessions from 0; ``at`` is monotonic ns. ``cpu_share`` is how
    much of one core the listener itself used, ``reads`` how many replies the entries came in.
    """

    def __init__(self, rows: np.ndarray, cpu_share: float, reads: int) -> None:
        self.session, self.turn, self.n, self.kind, self.at = rows.reshape(-1, 5).T
        self.cpu_share = cpu_share
        self.reads = reads
        self._rows = rows

    def frames_between(self, begin_ns: int, end_ns: int) -> "Arrivals":
        """The frames that arrived between two moments."""
        inside = (self.kind == Kind.FRAME) & (self.at >= begin_ns) & (self.at < end_ns)
        return Arrivals(self._rows.reshape(-1, 5)[inside], self.cpu_share, self.reads)

    def turns(self) -> "Iterator[Arrivals]":
        """The arrivals of each turn."""
        rows = self._rows.reshape(-1, 5)
        key = self.session * (int(self.turn.max(initial=0)) + 1) + self.turn
        for one in np.unique(key):
            yield Arrivals(rows[key == one], self.cpu_share, self.reads)

    def __len__(self) -> int:
        return len(self.at)


class Listener:
    """Reads from entering the block until ``stop``; streams need not exist yet."""

    def __init__(self, port: int, streams: Sequence[str]) -> None:
        self._stopping = _spawn.Value("b", 0, lock=True)
        self._pipe, theirs = _spawn.Pipe()
        self._process = _spawn.Process(
            target=_listen, args=(port, list(streams), self._stopping, theirs), daemon=True
        )

    def __enter__(self) -> Self:
        self._process.start()
        self._pipe.recv()  # it is connected
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def stop(self) -> Arrivals:
        """Stop reading; returns all arrivals."""
        self._stopping.value = 1
        rows, cpu_share, reads = self._pipe.recv()
        return Arrivals(rows, cpu_share, reads)


def _listen(port: int, streams: list[str], stopping: "Synchronized[int]", pipe: Pipe) -> None:
    keys = [stream.encode() for stream in streams]
    index = {key: i for i, key in enumerate(keys)}
    # The command is packed once; a read changes only the ids of streams with new entries.
    head = pack("XREAD", "BLOCK", _BLOCK_MS, "STREAMS", *keys)
    head = b"*%d\r\n" % (4 + 2 * len(keys)) + head.partition(b"\r\n")[2]
    ids = [_bulk(b"0-0")] * len(keys)
    rows: list[tuple[int, int, int, int, int]] = []
    reads = 0
    with Connection(port) as connection:
        pipe.send(None)
        gc.disable()
        begin_wall, begin_cpu = time.monotonic(), time.process_time()
        while not stopping.value:
            connection.send(head + b"".join(ids))
            reply, arrival = connection.receive()
            reads += 1
            for stream in reply or ():
                session = index[stream[0]]
                ids[session] = _note(session, stream, arrival, rows)
        cpu_share = (time.process_time() - begin_cpu) / (time.monotonic() - begin_wall)
    pipe.send((np.array(rows, np.int64).reshape(-1, 5), cpu_share, reads))


def _note(
    session: int, stream: list[Any], arrival: int, rows: list[tuple[int, int, int, int, int]]
) -> bytes:
    """Record a stream's entries; returns the packed id of the last one."""
    last = b""
    for turn, n, kind, entry_id in entries(stream):
        rows.append((session, turn, n, kind, arrival))
        last = entry_id
    return _bulk(last)


def _bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)
