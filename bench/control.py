"""From setting a control key to its effect: stop, pause and resume in speaking sessions.

Frames leave every 20 ms, so most often none is due in the moment after a SET, and "the last frame
came after SET + x" says little by itself: x is 0. Three things are therefore reported:

* last frame: when the last frame arrived that still came after the SET, 0 where none did;
* the answer: the end entry of a stop; of a pause, the session's record saying ``paused``, which
  is written by the same script, in the same batch, as frames would be. After the answer no frame
  can come, so it bounds the reaction from above, whatever the phase of the frame clock;
* how many SETs were followed by a frame at all. With frames every 20 ms, p per cent of SETs
  followed by one means that the fleet reacts in p per cent of 20 ms, in the mean.
"""

import random
import time
from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np

from bench.audio_stream import Entry, Kind, entries
from bench.live_sessions import LiveSessions, live_sessions, long_text, request
from bench.percentiles import Percentiles
from bench.plan import Plan
from bench.report import Figure, Report, figure, percentile_figures
from bench.resp import Connection, pack
from bench.testbed import TONE, Testbed, testbed

MODEL: Final = "tone-test"
TARGETS: Final = {"p50": 2.0, "p99": 10.0}
LIVE: Final = 50
TURN_S: Final = 600.0
PAUSED_S: Final = 0.06
"""How long a pause is watched: three frames would have come."""

_PHASE_S: Final = (0.0, 0.020)
_RECORD_LOOK_S: Final = 0.0001
_GAP_S: Final = (0.005, 0.030)


class _Reaction(msgspec.Struct, frozen=True):
    """What followed a SET, in ms after it left."""

    last_frame: float
    answer: float


def run(plan: Plan) -> Report:
    """Stop, pause and resume, again and again, in one of ``LIVE`` sessions."""
    with (
        testbed(TONE, MODEL, f"engine.tone.slots={LIVE + 14}") as bed,
        live_sessions(bed, LIVE, TURN_S) as live,
    ):
        probe = _Probe(bed, live)
        pauses, resumes = probe.pauses(plan.probes)
        stops = probe.stops(plan.probes)
        heard = live.listener.stop()
    followed = {
        name: float(np.mean([reaction.last_frame > 0 for reaction in reactions]))
        for name, reactions in (("stop", stops), ("pause", pauses))
    }
    return Report(
        bench="control",
        title=f"Control SET to last frame published, {LIVE} sessions live",
        conditions=(
            "tone engine at rtf 0; the SET leaves at a random moment of the 20 ms between frames; "
            "a reader blocked on that one session notes what arrives",
            "answer: the end entry of a stop; of a pause the session record's state, looked up "
            f"every {_RECORD_LOOK_S * 1000:g} ms and a round trip. No frame can follow either, so "
            "the target for the last frame is asked of the answer too",
            f"the {LIVE} sessions were read by one more listener, which used "
            f"{heard.cpu_share:.0%} of a core",
        ),
        figures=(
            *_figures("stop, SET to last frame", [s.last_frame for s in stops], TARGETS),
            *_figures("stop, SET to end entry", [s.answer for s in stops], TARGETS),
            figure("stops followed by a frame", followed["stop"] * 100, "%", samples=len(stops)),
            *_figures("pause, SET to last frame", [p.last_frame for p in pauses], TARGETS),
            *_figures("pause, SET to paused", [p.answer for p in pauses], TARGETS),
            figure("pauses followed by a frame", followed["pause"] * 100, "%", samples=len(pauses)),
            *_figures("resume, SET to next frame", resumes, {}),
        ),
        series={
            "stop to end entry": [s.answer for s in stops],
            "pause to paused": [p.answer for p in pauses],
            "resume to next frame": resumes,
        },
    )


def _figures(name: str, samples: list[float], targets: dict[str, float]) -> list[Figure]:
    return percentile_figures(name, Percentiles.of(samples), "ms", **targets)


class _Probe:
    """Sets control keys, session after session, and times their effect."""

    def __init__(self, bed: Testbed, live: LiveSessions) -> None:
        self._bed = bed
        self._sessions = live.names
        self._client = bed.connect()
        self._moments = random.Random(LIVE)

    def stops(self, count: int) -> list[_Reaction]:
        """Stop a turn and start the session's next one, ``count`` times."""
        text = long_text(TURN_S)
        reactions: list[_Reaction] = []
        for i in range(count):
            session = self._sessions[i % LIVE]
            with _Follower(self._bed, session) as follower:
                follower.until(lambda entry: entry.kind is Kind.FRAME)
                sent = self._set(session, "stop")
                seen = follower.until(lambda entry: entry.kind is Kind.END)
                reactions.append(_Reaction(_last_frame(seen, sent), _after(sent, seen[-1][1])))
                self._client.call("DEL", self._bed.keys.control(session))
                request(self._client, self._bed, session, text)
                follower.until(lambda entry: entry.kind is Kind.FRAME)
            self._rest()
        return reactions

    def pauses(self, count: int) -> tuple[list[_Reaction], list[float]]:
        """Pause and resume, ``count`` times: reactions, and ms from resume to the next frame."""
        reactions: list[_Reaction] = []
        resumes: list[float] = []
        for i in range(count):
            session = self._sessions[i % LIVE]
            with _Follower(self._bed, session) as follower:
                follower.until(lambda entry: entry.kind is Kind.FRAME)
                sent = self._set(session, "pause")
                answered = self._await_paused(session)
                seen = follower.for_seconds(PAUSED_S)
                reactions.append(_Reaction(_last_frame(seen, sent), _after(sent, answered)))
                sent = self._set(session, "resume")
                seen = follower.until(lambda entry: entry.kind is Kind.FRAME)
                resumes.append(_after(sent, seen[-1][1]))
            self._rest()
        return reactions, resumes

    def _set(self, session: str, value: str) -> int:
        """Set the control key at a random phase of the frame clock; returns the time in ns."""
        time.sleep(self._moments.uniform(*_PHASE_S))
        sent = self._client.send(pack("SET", self._bed.keys.control(session), value))
        self._client.receive()
        return sent

    def _await_paused(self, session: str) -> int:
        """When the session's record shows that it is paused, in ns."""
        look = pack("HGET", self._bed.keys.session(session), "state")
        while True:
            self._client.send(look)
            state, arrival = self._client.receive()
            if state == b"paused":
                return arrival
            time.sleep(_RECORD_LOOK_S)

    def _rest(self) -> None:
        time.sleep(self._moments.uniform(*_GAP_S))


class _Follower:
    """A reader blocked on one session's stream, from its newest entry on."""

    def __init__(self, bed: Testbed, session: str) -> None:
        self._stream = bed.keys.audio(session)
        self._connection: Connection = bed.connect()
        self._last = self._connection.call("XREVRANGE", self._stream, "+", "-", "COUNT", 1)[0][0]

    def __enter__(self) -> "_Follower":
        self._ask()
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def until(self, wanted: Callable[[Entry], bool]) -> list[tuple[Entry, int]]:
        """Entries and their arrivals, up to the first that is wanted, and all that came with it."""
        seen: list[tuple[Entry, int]] = []
        while True:
            seen += self._next()
            if any(wanted(entry) for entry, _ in seen):
                return seen

    def for_seconds(self, seconds: float) -> list[tuple[Entry, int]]:
        """The entries that arrive in this time."""
        seen: list[tuple[Entry, int]] = []
        deadline = time.monotonic() + seconds
        while self._connection.wait(deadline - time.monotonic()):
            seen += self._next()
        return seen

    def _next(self) -> list[tuple[Entry, int]]:
        reply, arrival = self._connection.receive()
        found = [(entry, arrival) for entry in entries(reply[0])]
        self._last = found[-1][0].id
        self._ask()
        return found

    def _ask(self) -> None:
        self._connection.send(pack("XREAD", "BLOCK", 0, "STREAMS", self._stream, self._last))


def _after(sent: int, arrival: int) -> float:
    return (arrival - sent) / 1e6


def _last_frame(seen: list[tuple[Entry, int]], sent: int) -> float:
    """Ms from the SET to the last frame that arrived after it; 0 if none did."""
    late = [_after(sent, at) for entry, at in seen if entry.kind is Kind.FRAME and at > sent]
    return max(late, default=0.0)
