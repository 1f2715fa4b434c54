"""Runs a load against a whole fleet, through Redis, with one reader."""

import math
import time
from collections import deque
from typing import Any, Final

import msgspec
import numpy as np

from bench.cosyvoice.drive import Run
from bench.cosyvoice.listening import Heard, Playback
from bench.cosyvoice.load import Ask, Load
from bench.resp import Connection, pack
from bench.testbed import Testbed

RATE: Final = 24_000
"""The requested sample rate: the model's own, so that nothing is resampled."""

_BLOCK_S: Final = 0.02


class _Turn(msgspec.Struct, kw_only=True):
    """One request; each is a session of its own."""

    ask: Ask
    added_at: float
    playback: Playback
    last_id: bytes = b"0-0"
    stopped_at: float | None = None
    frames: int = 0


class Fleet:
    """Sends requests, reads audio and stops turns with raw Redis commands.

    One connection reads all live sessions with one XREAD; another adds requests and control values
    between reads. A turn's time counts from when it was due, before its XADD.
    """

    def __init__(self, bed: Testbed, slots: int) -> None:
        self._bed = bed
        self._slots = slots
        self._live: dict[bytes, _Turn] = {}
        self._count = 0
        self._heard: list[Heard] = []

    def run(self, load: Load, limit_s: float = 600.0) -> Run:
        """Run all turns of a load to their ends.

        Raises:
            TimeoutError: The load does not end.
        """
        self._heard = []
        with self._bed.connect() as client, self._bed.connect() as reader:
            began_at = time.monotonic()
            load.begin(began_at)
            waited = highest = 0
            while True:
                now = time.monotonic()
                if now - began_at > limit_s:
                    raise TimeoutError(f"the load {load.name} does not end in {limit_s:.0f} s")
                for ask in load.due(now):
                    waited += len(self._live) >= self._slots
                    self._add(client, ask)
                self._stop(client)
                highest = max(highest, len(self._live))
                next_at = load.next_at()
                if self._live:
                    self._read(reader, load, min(_BLOCK_S, next_at - time.monotonic()))
                elif math.isinf(next_at):
                    break
                else:
                    time.sleep(max(0.0, next_at - time.monotonic()))
        return Run(heard=tuple(self._heard), began_at=began_at, waited=waited, highest=highest)

    def taken_over_s(self, rounds: int) -> list[float]:
        """Seconds from a stop to the start entry of the turn that waited for the slot."""
        found: list[float] = []
        with self._bed.connect() as client, self._bed.connect() as reader:
            speaking: deque[bytes] = deque()
            for _ in range(self._slots):
                speaking.append(self._long(client))
            for stream in speaking:
                _await_entry(reader, stream)
            for _ in range(rounds):
                waiting = self._long(client)
                time.sleep(0.1)
                begun = time.monotonic()
                self._request_stop(client, speaking.popleft())
                found.append(_await_entry(reader, waiting) - begun)
                speaking.append(waiting)
            for stream in speaking:
                self._request_stop(client, stream)
        return found

    def _add(self, client: Connection, ask: Ask) -> bytes:
        self._count += 1
        session = f"{self._bed.model}-{self._bed.server.port}-{self._count}"
        stream = self._bed.keys.audio(session).encode()
        self._live[stream] = _Turn(ask=ask, added_at=time.monotonic(), playback=Playback(RATE))
        client.call(
            *("XADD", self._bed.keys.requests(self._bed.model), "*", "session", session),
            *("text", ask.text, "seed", ask.seed, "sample_rate", RATE),
        )
        return stream

    def _long(self, client: Connection) -> bytes:
        """Add a turn that is too long to end by itself."""
        text = " ".join(["A turn that speaks for as long as it is let."] * 40)
        stream = self._add(client, Ask(time.monotonic(), text, 1))
        del self._live[stream]
        return stream

    def _stop(self, client: Connection) -> None:
        now = time.monotonic()
        for stream, turn in self._live.items():
            due = turn.ask.stop_at
            if due is not None and turn.stopped_at is None and now >= due:
                turn.stopped_at = due
                self._request_stop(client, stream)

    def _request_stop(self, client: Connection, stream: bytes) -> None:
        session = stream.decode().partition("{")[2].rstrip("}")
        client.call("SET", self._bed.keys.control(session), "stop", "EX", 60)

    def _read(self, reader: Connection, load: Load, seconds: float) -> None:
        block = max(1, int(1000 * seconds))
        ids = [turn.last_id for turn in self._live.values()]
        reader.send(pack("XREAD", "BLOCK", block, "STREAMS", *self._live, *ids))
        reply, arrival = reader.receive()
        at = arrival / 1e9
        for stream, entries in reply or ():
            turn = self._live[stream]
            pcm: list[bytes] = []
            ended: dict[bytes, bytes] | None = None
            for entry_id, fields in entries:
                turn.last_id = entry_id
                if fields[0] == b"pcm":
                    pcm.append(fields[1])
                else:
                    entry = dict(zip(fields[::2], fields[1::2], strict=True))
                    ended = entry if entry[b"event"] == b"end" else ended
            if pcm:
                samples = np.frombuffer(b"".join(pcm), "<i2").astype(np.float32) / 32768
                turn.playback.arrive(at, samples)
            if ended is not None:
                del self._live[stream]
                self._end(turn, at, ended, load)

    def _end(self, turn: _Turn, at: float, end: dict[bytes, bytes], load: Load) -> None:
        playback, ask = turn.playback, turn.ask
        reason = end[b"reason"].decode()
        stopped = turn.stopped_at is not None and reason == "stopped"
        whole = reason == "completed" or stopped
        self._heard.append(
            Heard(
                asked_at=ask.at,
                opened_at=turn.added_at,
                first_at=math.nan if playback.first_at is None else playback.first_at,
                audible_at=playback.audible_at,
                last_at=playback.last_at,
                audio_s=playback.produced / playback.rate,
                first_piece_s=playback.first_samples / playback.rate,
                late_s=tuple(playback.late_s) if ask.paced else (),
                stop_s=at - turn.stopped_at if stopped and turn.stopped_at else None,
                failed=None if whole else f"{reason}: {end.get(b'error', b'').decode()}",
            )
        )
        load.ended(max(at, playback.ends_at) if ask.paced and whole and not stopped else at)


def _await_entry(reader: Connection, stream: bytes) -> float:
    """Wait for a session's first entry; return when it came, on the monotonic clock."""
    reader.send(pack("XREAD", "BLOCK", 30_000, "COUNT", 1, "STREAMS", stream, b"0-0"))
    reply, arrival = reader.receive()
    if not reply:
        raise TimeoutError("a turn does not begin in 30 s")
    return arrival / 1e9


def worker_record(bed: Testbed, name: str = "bench") -> dict[str, Any]:
    """The worker's record."""
    with bed.connect() as client:
        flat = client.call("HGETALL", bed.keys.worker(name))
    return {k.decode(): v.decode() for k, v in zip(flat[::2], flat[1::2], strict=True)}
