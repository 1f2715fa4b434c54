"""A fleet under a steady mix of turns, watched from outside until it is idle again."""

import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, Self

import msgspec
import psutil

from bench.load import vitals
from bench.load.call import Answer, Call
from bench.load.callers import Callers
from bench.load.fleet import Fleet, fleet, worker_record
from bench.load.mix import mix
from bench.load.probed_worker import Snapshot
from bench.load.vitals import Vitals
from bench.percentiles import Percentiles

AUDIO_TTL_S: Final = 20
_FIRST_CALLS: Final = 2
"""Calls of each caller before the idle fleet is measured, to open what is opened lazily."""

_LOOK_S: Final = 0.1
_SETTLE_S: Final = 2.0
"""Time for the server to notice a closed connection."""


class SoakPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes. The first ``warm_up_min`` of ``minutes`` do not count."""

    minutes: float = 30.0
    warm_up_min: float = 5.0
    every_s: float = 5.0
    workers: int = 2
    slots: int = 32
    callers: int = 40
    audio_ttl_s: int = AUDIO_TTL_S
    seed: int = 1

    @classmethod
    def of(cls, minutes: float) -> Self:
        """A soak of this length: its first sixth is the warm-up."""
        return cls(minutes=minutes, warm_up_min=minutes / 6)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The measurements of a soak. ``first`` and ``last`` are of the idle fleet."""

    began_ns: int
    first: Vitals
    last: Vitals
    inside_first: list[Snapshot | None]
    inside_last: list[Snapshot | None]
    samples: list[Vitals]
    answers: list[Answer]
    slots_taken: int
    sessions_left: int


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the partial results: the fleet, and the answers since the last line."""

    vitals: Vitals
    turns: int
    unexpected: int
    first_frame: Percentiles | None


def soak(plan: SoakPlan, partial_file: Path) -> Found:
    """Soak. An interrupt from the keyboard ends it early, with what there is."""
    settings = (f"engine.tone.slots={plan.slots}", f"worker.audio_ttl_s={plan.audio_ttl_s}")
    scripts = [partial(mix, plan.seed, caller) for caller in range(plan.callers)]
    before = [partial(_first_calls, plan.seed, caller) for caller in range(plan.callers)]
    with fleet(plan.workers, *settings) as on:
        keys = vitals.take(on, time.monotonic()).keys
        with Callers(on.server.port, before) as callers:
            callers.rest()
        _await_keys(on, keys, plan.audio_ttl_s)
        inside_first = _inside(on)
        time.sleep(_SETTLE_S)
        first = vitals.take(on, time.monotonic())
        with Callers(on.server.port, scripts) as callers, partial_file.open("ab") as lines:
            samples: list[Vitals] = []
            answers: list[Answer] = []
            began = callers.began_ns / 1e9
            try:
                while samples == [] or samples[-1].at_s < plan.minutes * 60:
                    heard = _listen(callers, began + (len(samples) + 1) * plan.every_s)
                    samples.append(vitals.take(on, began))
                    answers += heard
                    lines.write(msgspec.json.encode(_window(samples[-1], heard)) + b"\n")
                    lines.flush()
            except KeyboardInterrupt:
                print("ended early: reporting what there is")
            callers.stop()
            answers += callers.rest()
        _await_keys(on, first.keys, plan.audio_ttl_s)
        records = _records(on)
        inside_last = _inside(on)
        time.sleep(_SETTLE_S)
        return Found(
            began_ns=callers.began_ns,
            first=first,
            last=vitals.take(on, began),
            inside_first=inside_first,
            inside_last=inside_last,
            samples=samples,
            answers=answers,
            slots_taken=sum(int(r["slots_total"]) - int(r["slots_free"]) for r in records),
            sessions_left=sum(int(record["sessions"]) for record in records),
        )


def _first_calls(seed: int, caller: int) -> Iterator[Call]:
    return islice(mix(seed, caller, "first"), _FIRST_CALLS)


def _listen(callers: Callers, until: float) -> list[Answer]:
    heard: list[Answer] = []
    while time.monotonic() < until:
        heard += callers.answers(_LOOK_S)
        time.sleep(_LOOK_S)
    return heard


def _window(now: Vitals, heard: list[Answer]) -> Window:
    waited = waits(heard)
    return Window(
        vitals=now,
        turns=len(heard),
        unexpected=sum(not one.is_expected for one in heard),
        first_frame=Percentiles.of(waited) if waited else None,
    )


def _inside(on: Fleet) -> list[Snapshot | None]:
    found: list[Snapshot | None] = []
    for worker in on.workers:
        try:
            found.append(worker.snapshot())
        except (TimeoutError, psutil.NoSuchProcess):  # it has ended: the figures show it
            found.append(None)
    return found


def _await_keys(on: Fleet, keys: int, ttl_s: float) -> None:
    """Wait until all audio has expired, or should have."""
    deadline = time.monotonic() + ttl_s + 10
    with on.connect() as connection:
        while connection.call("DBSIZE") > keys and time.monotonic() < deadline:
            time.sleep(_LOOK_S)


def _records(on: Fleet) -> list[dict[str, str]]:
    with on.connect() as connection:
        records = [worker_record(connection, worker.name) for worker in on.workers]
    return [record for record in records if record]


def waits(answers: list[Answer]) -> list[float]:
    """Ms to the first frame, of turns that did not wait for another of their session."""
    return [one.wait_ms for one in answers if one.request == "r1" and one.kind == "plain"]
