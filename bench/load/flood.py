"""A flood: many more requests than slots, at once and for a while, from several tenants.

A session's tenant is what stands before the first ``:`` of its name.
"""

import random
import time
from collections.abc import Iterator
from functools import partial
from typing import Final

import msgspec

from bench.live_sessions import START_PER_S, live_sessions
from bench.load.call import Answer, Call, Step, asking
from bench.load.callers import Callers, Script
from bench.load.delivery import Delivery, delivery
from bench.load.fleet import MODEL, Fleet, fleet, worker_record
from voicefleet.schemas.keys import GROUP, Keys

TEXT: Final = "Is anybody there?"
PROBE_TEXT: Final = "Hi."
PROBE_EVERY_S: Final = 0.1
DEADLINES_S: Final = (1.0, 3.0)
GREEDY, BUSY, MODEST, PROBE = "greedy", "busy", "modest", "probe"
BUSY_SHARE: Final = 0.1
"""The busy tenant's share of the flood; the rest is the greedy one's, the modest one adds to it."""

PATIENT_SHARE: Final = 0.1
"""The share of the flood's requests without a deadline."""

EMPTY_S: Final = 30.0
_LOOK_S: Final = 0.05
_TURN_S: Final = 600.0


class FloodPlan(msgspec.Struct, frozen=True, kw_only=True):
    """``times`` as many requests as there are slots come at once, and ``per_s`` from then on.

    ``modest_per_s`` requests come from the modest tenant, without a deadline. ``live`` sessions
    speak all the while, and ``after_s`` more.
    """

    workers: int
    slots: int
    live: int
    times: int
    per_s: float
    modest_per_s: float
    before_s: float
    flood_s: float
    after_s: float
    seed: int = 1

    @property
    def slots_total(self) -> int:
        """The slots of all workers."""
        return self.workers * self.slots

    @property
    def contested(self) -> int:
        """The slots that live sessions leave."""
        return self.slots_total - self.live


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a flood. Moments are monotonic ns.

    ``room_ns`` is when waiting requests could be spoken: at the end of the flood, or of the live
    sessions if they held all slots. ``free_ns`` is when all slots were free and the queue was
    empty, 0 if that did not happen.
    """

    plan: FloodPlan
    before: Delivery
    during: Delivery
    after: Delivery
    answers: list[Answer]
    begin_ns: int
    end_ns: int
    room_ns: int
    free_ns: int

    def of(self, *tenants: str) -> list[Answer]:
        """The answers to these tenants."""
        return [one for one in self.answers if one.session.partition(":")[0] in tenants]


def flood(plan: FloodPlan) -> Outcome:
    """Run a flood on a fleet of its own."""
    settings = (f"engine.tone.slots={plan.slots}",)
    with (
        fleet(plan.workers, *settings) as on,
        live_sessions(on.bed, plan.live, _TURN_S, per_s=START_PER_S) as live,
        Callers(on.server.port, scripts(plan)) as callers,
    ):
        begin = callers.began_ns + int(plan.before_s * 1e9)
        end = begin + int(plan.flood_s * 1e9)
        after = end + int(plan.after_s * 1e9)
        answers: list[Answer] = []
        while time.monotonic_ns() < after:
            answers += callers.answers(_LOOK_S)
        arrivals = live.listener.stop()
        stopped = time.monotonic_ns()
        _stop(on, live.names)
        answers += callers.rest()
        free_ns = _await_free(on, plan.slots_total)
    return Outcome(
        plan=plan,
        before=delivery(arrivals, callers.began_ns, begin),
        during=delivery(arrivals, begin, end),
        after=delivery(arrivals, end, after),
        answers=answers,
        begin_ns=begin,
        end_ns=end,
        room_ns=end if plan.contested else stopped,
        free_ns=free_ns,
    )


def scripts(plan: FloodPlan) -> list[Script]:
    """One caller for each request of the flood, and one that probes before and after it."""
    moments = random.Random(plan.seed)
    calls: list[Call] = []
    at_once = plan.times * plan.slots_total
    total = at_once + int(plan.per_s * plan.flood_s)
    for i in range(total):
        at_s = 0.0 if i < at_once else moments.uniform(0, plan.flood_s)
        tenant = BUSY if moments.random() < BUSY_SHARE else GREEDY
        deadline = None
        if moments.random() >= PATIENT_SHARE:
            deadline = moments.uniform(*DEADLINES_S)
        calls.append(_call(f"{tenant}:{i}", plan.before_s + at_s, TEXT, deadline))
    modest = int(plan.modest_per_s * plan.flood_s)
    calls += [
        _call(f"{MODEST}:{i}", plan.before_s + (i + 0.5) / plan.modest_per_s, TEXT)
        for i in range(modest)
    ]
    probes: list[Call] = []
    if plan.contested:
        end = plan.before_s + plan.flood_s
        spans = ((0.0, plan.before_s), (end, end + plan.after_s))
        moments_s = [
            start + k * PROBE_EVERY_S
            for start, until in spans
            for k in range(int((until - start) / PROBE_EVERY_S))
        ]
        probes = [_call(f"{PROBE}:{k}", at_s, PROBE_TEXT) for k, at_s in enumerate(moments_s)]
    return [partial(_one, call) for call in (*calls, *probes)]


def _call(session: str, at_s: float, text: str, deadline_s: float | None = None) -> Call:
    command = asking(Keys(), MODEL, session, "r1", text=text)
    step = Step(
        at_s=0.0,
        command=command,
        request="r1",
        deadline_s=deadline_s,
        expected=("completed",) if deadline_s is None else ("completed", "expired"),
    )
    kind = "plain" if deadline_s is None else "expiring"
    return Call(session=session, kind=kind, steps=(step,), at_s=at_s)


def _one(call: Call) -> Iterator[Call]:
    yield call


def _stop(on: Fleet, sessions: tuple[str, ...]) -> None:
    with on.connect() as connection:
        for session in sessions:
            connection.call("SET", on.keys.control(session), "stop", "EX", 60)


def _await_free(on: Fleet, slots: int) -> int:
    """When all slots were free and the queue was empty; 0 if that did not happen."""
    deadline = time.monotonic() + EMPTY_S
    queue = on.keys.requests(on.model)
    with on.connect() as connection:
        while time.monotonic() < deadline:
            records = [worker_record(connection, worker.name) for worker in on.workers]
            free = sum(int(record.get("slots_free", 0)) for record in records)
            pending = connection.call("XPENDING", queue, GROUP)[0]
            if free == slots and not pending and not connection.call("XLEN", queue):
                return time.monotonic_ns()
            time.sleep(_LOOK_S)
    return 0
