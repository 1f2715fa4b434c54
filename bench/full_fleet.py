"""A full fleet: how soon control values act without a free slot, and how long requests wait.

Controls: long turns hold every slot, and many other sessions wait. Conversations: callers want one
and a half times the slots; each call has several turns, one after another, in a session of its own.
Once sessions in conversation come first, once they do not (``conversation_s`` 0).
"""

import random
import threading
import time
from typing import Any, Final

from bench.live_sessions import live_sessions, long_text, request
from bench.percentiles import Percentiles
from bench.plan import Plan
from bench.report import Report, percentile_figures
from bench.resp import Connection, pack
from bench.testbed import TONE, Testbed, testbed

MODEL: Final = "tone-test"
SLOTS: Final = 8
WAITING: Final = 1000
TURN_S: Final = 600.0
MOST_PROBES: Final = 100
TARGETS: Final = {"p95": 100.0}
TURNS_A_CALL: Final = 5
CALLERS: Final = SLOTS * 3 // 2
LEAST_CALLS_S: Final = 20.0

_GAP_S: Final = (0.01, 0.05)
_SPOKEN_S: Final = 1.0
_BLOCK_MS: Final = 500
_BEFORE, _SINCE = "nobody comes first", "conversations come first"


def run(plan: Plan) -> Report:
    """Both measurements."""
    controls, heard = _controls(min(plan.probes, MOST_PROBES))
    seconds = max(plan.seconds, LEAST_CALLS_S)
    waits = {
        name: _calls(conversation_s, seconds)
        for name, conversation_s in ((_BEFORE, 0.0), (_SINCE, 30.0))
    }
    kinds = {
        f"{kind}, {name}": samples
        for name, found in waits.items()
        for kind, samples in zip(("first turn of a call", "later turn"), found, strict=True)
    }
    return Report(
        bench="full_fleet",
        title=f"{SLOTS} slots, all taken: controls with {WAITING} waiting, and conversations",
        conditions=(
            f"tone engine; {SLOTS} sessions speak for {TURN_S:g} s, {WAITING} others wait",
            "interrupt: from the XADD to the end entry of the interrupted turn, and to the first "
            "frame of the new one, which is spoken in its slot",
            "stop: from the SET to the end entry of a turn that waits; reject: from the XADD of an "
            "invalid request to its end entry",
            f"one more listener read the speaking sessions, with {heard:.0%} of a core",
            f"conversations: {CALLERS} callers for {seconds:g} s, {TURNS_A_CALL} turns a "
            f"call, {_SPOKEN_S:g} s each; the wait is from the XADD to the start entry",
        ),
        figures=(
            *(
                part
                for name, samples in controls.items()
                for part in percentile_figures(name, Percentiles.of(samples), "ms", **TARGETS)
            ),
            *(
                part
                for kind, samples in kinds.items()
                for part in percentile_figures(f"wait of a {kind}", Percentiles.of(samples), "ms")
            ),
        ),
        series={"controls": controls, "waits": kinds},
    )


def _controls(count: int) -> tuple[dict[str, list[float]], float]:
    """Milliseconds by kind of control, and the listener's share of a core."""
    moments = random.Random(SLOTS)
    found: dict[str, list[float]] = {
        "interrupt, XADD to end entry": [],
        "interrupt, XADD to first frame": [],
        "stop of a waiting turn, SET to end entry": [],
        "invalid request, XADD to end entry": [],
    }
    ended, began, stopped, rejected = found.values()
    with (
        testbed(TONE, MODEL, f"engine.tone.slots={SLOTS}") as bed,
        live_sessions(bed, SLOTS, TURN_S) as live,
        bed.connect() as connection,
    ):
        text = long_text(TURN_S)
        for i in range(WAITING):
            request(connection, bed, f"waits-{i}", text)
        _until_parked(bed, connection, WAITING)
        for i in range(count):
            time.sleep(moments.uniform(*_GAP_S))
            probe = _Probe(bed, live.names[i % SLOTS])
            sent = probe.add("interrupt", "1", "text", text)
            old, new = probe.until_end(), probe.until_frame()
            ended.append((old - sent) / 1e6)
            began.append((new - sent) / 1e6)
            probe.close()
            probe = _Probe(bed, f"waits-{i}")
            stopped.append((probe.until_end_after_stop()) / 1e6)
            probe.close()
            probe = _Probe(bed, f"invalid-{i}")
            sent = probe.add("speed", "9", "text", text)
            rejected.append((probe.until_end() - sent) / 1e6)
            probe.close()
        heard = live.listener.stop()
    return found, heard.cpu_share


def _until_parked(bed: Testbed, connection: Connection, count: int) -> None:
    """Wait until so many requests are in the backlog."""
    while True:
        pending = connection.call("XPENDING", bed.keys.requests(bed.model), "workers")
        held = {name: int(held) for name, held in pending[3] or []}
        if held.get(b"backlog", 0) >= count:
            return
        time.sleep(0.05)


class _Probe:
    """One session, read from its newest entry on."""

    def __init__(self, bed: Testbed, session: str) -> None:
        self._bed = bed
        self._session = session
        self._stream = bed.keys.audio(session)
        self._commands, self._reader = bed.connect(), bed.connect()
        newest = self._commands.call("XREVRANGE", self._stream, "+", "-", "COUNT", 1)
        self._last: bytes | str = newest[0][0] if newest else "0-0"

    def add(self, *fields: str) -> int:
        """Add a request; returns when it was sent, in ns."""
        queue = self._bed.keys.requests(self._bed.model)
        sent = self._commands.send(pack("XADD", queue, "*", "session", self._session, *fields))
        self._commands.receive()
        return sent

    def until_end_after_stop(self) -> int:
        """Stop the session; returns the nanoseconds until its next end entry."""
        key = self._bed.keys.control(self._session)
        sent = self._commands.send(pack("SET", key, "stop", "EX", 60))
        self._commands.receive()
        return self.until_end() - sent

    def until_end(self) -> int:
        """The arrival of the next end entry, in ns."""
        return self._until(lambda fields: fields[1] == b"end")

    def until_frame(self) -> int:
        """The arrival of the next frame, in ns."""
        return self._until(lambda fields: fields[0] == b"pcm")

    def start_after(self, sent: int) -> int:
        """Nanoseconds from ``sent`` until the next start entry."""
        return self._until(lambda fields: fields[1] == b"start") - sent

    def close(self) -> None:
        """Drop both connections."""
        self._commands.close()
        self._reader.close()

    def _until(self, wanted: Any) -> int:
        while True:
            read = pack("XREAD", "BLOCK", _BLOCK_MS, "STREAMS", self._stream, self._last)
            self._reader.send(read)
            reply, arrival = self._reader.receive()
            for entry, fields in reply[0][1] if reply else ():
                self._last = entry
                if wanted(fields):
                    return arrival


def _calls(conversation_s: float, seconds: float) -> tuple[list[float], list[float]]:
    """The waits of calls' first and later turns, in ms."""
    first: list[float] = []
    later: list[float] = []
    settings = (f"engine.tone.slots={SLOTS}", f"worker.conversation_s={conversation_s:g}")
    with testbed(TONE, MODEL, *settings) as bed:
        deadline = time.monotonic() + seconds
        callers = [
            threading.Thread(target=_call, args=(bed, caller, deadline, first, later))
            for caller in range(CALLERS)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    return first, later


def _call(
    bed: Testbed, caller: int, deadline: float, first: list[float], later: list[float]
) -> None:
    """One call after another until the deadline."""
    moments, text, call = random.Random(caller), long_text(_SPOKEN_S), 0
    while time.monotonic() < deadline:
        probe, call = _Probe(bed, f"call-{caller}-{call}"), call + 1
        for turn in range(TURNS_A_CALL):
            sent = probe.add("text", text)
            (later if turn else first).append(probe.start_after(sent) / 1e6)
            probe.until_end()
            time.sleep(moments.uniform(*_GAP_S))
        probe.close()
