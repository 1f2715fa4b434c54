"""The journal of a run without violations, from which tests derive broken ones."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from verify.chaos.checker import check
from verify.chaos.journal import (
    Asked,
    Capacity,
    ControlSet,
    Event,
    Fault,
    FinalState,
    Heard,
    Journal,
    Reference,
    Wrote,
)
from verify.chaos.verdict import Verdict

S = "o0:s0"
OTHER = "o0:s1"
DEADLINE_MS = 1_007_100
FRAMES = {"plain-0": 10, "plain-1": 8, "streamed-0": 6}


def digest(utterance: str, n: int) -> str:
    return f"{utterance}/{n}"


def asked(at: float, request: str, utterance: str, session: str = S, **given: Any) -> Asked:
    fields = {"session": session, "request": request, "seed": "1", **given.pop("fields", {})}
    model = given.pop("model", "tone-test")
    entry = given.pop("entry", f"{round(at * 1000)}-0")
    return Asked(
        at=at,
        session=session,
        request=request,
        model=model,
        utterance=utterance,
        fields=fields,
        entry=entry,
        **given,
    )


def heard(at: float, turn: int, n: int, kind: Any, session: str = S, **given: Any) -> Heard:
    reader = given.pop("reader", "recorder")
    content = {name: given.pop(name) for name in ("digest", "size") if name in given}
    return Heard(
        at=at, reader=reader, session=session, turn=turn, n=n, kind=kind, fields=given, **content
    )


def start(at: float, turn: int, request: str, session: str = S, **changed: str) -> Heard:
    fields = {
        "event": "start",
        "request": request,
        "model": "tone-test",
        "voice": "tone-a",
        "worker": "w1",
        "sample_rate": "48000",
        "frame_ms": "20",
        "format": "s16le",
        "channels": "1",
        "t": str(round(at * 1000)),
    }
    return heard(at, turn, 0, "start", session, **fields | changed)


def frame(
    at: float, turn: int, n: int, utterance: str, session: str = S, reader: str = "recorder"
) -> Heard:
    text = {"text": "words"} if n == 1 else {}
    return heard(
        at,
        turn,
        n,
        "frame",
        session,
        reader=reader,
        digest=digest(utterance, n),
        size=1920,
        **text,
    )


def frames(
    at: float, turn: int, first: int, last: int, utterance: str, session: str = S
) -> list[Heard]:
    return [
        frame(at + 0.02 * (n - first), turn, n, utterance, session) for n in range(first, last + 1)
    ]


def end(
    at: float, turn: int, n: int, request: str, reason: str, session: str = S, **more: str
) -> Heard:
    fields = {"event": "end", "request": request, "reason": reason, "frames": str(n - 1)}
    fields |= {"t": str(round(at * 1000))} | more
    return heard(at, turn, n, "end", session, **fields)


def spoken(
    at: float, turn: int, request: str, utterance: str, session: str = S, **header: str
) -> list[Event]:
    """The entries of a correct turn."""
    count = FRAMES[utterance]
    return [
        start(at, turn, request, session, **header),
        *frames(at, turn, 1, count, utterance, session),
        end(at + 0.02 * count, turn, count + 1, request, "completed", session),
    ]


def capacity(at: float, ready: int = 2) -> Capacity:
    slots = 16 * ready
    return Capacity(at=at, ready=ready, slots_total=slots, slots_free=slots - 1, speaking=1)


KILL = Fault(at=1020.0, until=1020.1, kind="worker_kill", target="w1")


def good() -> list[Event]:
    """Two sessions, every kind of end, a fault, a late reader, a final state without leftovers."""
    events: list[Event] = [
        Reference(
            utterance=utterance,
            digests=[digest(utterance, n) for n in range(1, count + 1)],
            texts=["words", *[None] * (count - 1)],
        )
        for utterance, count in FRAMES.items()
    ]
    # Spoken, and asked for again.
    events += [asked(1000.0, "t1", "plain-0"), *spoken(1000.1, 1, "t1", "plain-0")]
    events.append(asked(1001.0, "t1", "plain-0", again=True))
    # Interrupted.
    events += [asked(1002.0, "t2", "plain-1"), start(1002.1, 2, "t2")]
    events += frames(1002.1, 2, 1, 3, "plain-1")
    events.append(asked(1002.5, "t3", "plain-1", fields={"interrupt": "1"}))
    events += [end(1002.55, 2, 4, "t2", "interrupted"), *spoken(1002.6, 3, "t3", "plain-1")]
    # Stopped: one that is spoken, one that waits.
    events += [asked(1004.0, "t4", "plain-0"), asked(1004.0, "t5", "plain-1")]
    events += [start(1004.1, 4, "t4"), *frames(1004.1, 4, 1, 4, "plain-0")]
    events += [ControlSet(at=1004.5, session=S, value="stop"), end(1004.52, 4, 5, "t4", "stopped")]
    events += [
        end(1004.53, 5, 1, "t5", "stopped"),
        ControlSet(at=1005.0, session=S, value="resume"),
    ]
    # Rejected, expired, streamed.
    events.append(asked(1006.0, "t6", "plain-0", fields={"speed": "9"}, invalid=True))
    events.append(end(1006.1, 6, 1, "t6", "rejected", error="speed: 9"))
    events.append(asked(1007.0, "t7", "plain-0", fields={"deadline_ms": str(DEADLINE_MS)}))
    events.append(end(1007.2, 7, 1, "t7", "expired"))
    events.append(asked(1008.0, "t8", "streamed-0", fields={"stream": "1"}))
    events += [Wrote(at=1008.1, session=S, request="t8", piece=0, ended=False)]
    events += [Wrote(at=1008.2, session=S, request="t8", piece=1, ended=True)]
    events += spoken(1008.2, 8, "t8", "streamed-0")
    # Paused.
    events += [asked(1009.0, "t9", "plain-0"), start(1009.1, 9, "t9")]
    events += frames(1009.1, 9, 1, 4, "plain-0")
    events += [ControlSet(at=1009.3, session=S, value="pause")]
    events += [ControlSet(at=1010.5, session=S, value="RESUME")]
    events += [*frames(1010.52, 9, 5, 10, "plain-0"), end(1010.7, 9, 11, "t9", "completed")]
    # A deadline that is kept, a saboteur, one that is named in a stop.
    events.append(asked(1012.0, "t10", "plain-0", fields={"deadline_ms": "1072000"}))
    events += spoken(1012.1, 10, "t10", "plain-0")
    events.append(asked(1014.0, "t11", "stumble-1", model="saboteur"))
    events += [start(1014.1, 11, "t11", model="saboteur")]
    events += [end(1014.2, 11, 1, "t11", "failed", error="EngineError: stumbled")]
    events += [asked(1016.0, f"t{k}", "plain-1") for k in (12, 13, 14)]
    events += [start(1016.1, 12, "t12"), *frames(1016.1, 12, 1, 2, "plain-1")]
    events += [ControlSet(at=1016.2, session=S, value="stop:t13")]
    events += [end(1016.25, 12, 3, "t12", "stopped"), end(1016.26, 13, 1, "t13", "stopped")]
    events += spoken(1016.3, 14, "t14", "plain-1")
    # Taken over after a kill.
    events += [asked(1019.8, "t1", "plain-0", OTHER), start(1019.9, 1, "t1", OTHER)]
    events += [*frames(1019.9, 1, 1, 5, "plain-0", OTHER), KILL]
    events += frames(1021.5, 1, 6, 10, "plain-0", OTHER)
    events.append(end(1021.6, 1, 11, "t1", "completed", OTHER))
    events += [capacity(999.0 + 0.5 * k) for k in range(43)]
    events += [capacity(1020.5 + 0.5 * k, ready=1) for k in range(4)]
    events += [capacity(1022.5 + 0.5 * k) for k in range(40)]
    # One who comes late.
    events += [frame(1030.0, 3, n, "plain-1", reader="late") for n in range(1, 9)]
    events.append(
        FinalState(
            at=1050.0,
            without_ttl=[],
            pending={"tone-test": 0},
            queued={"tone-test": 0},
            slots={"w1": (16, 16), "w2": (16, 16)},
            dead_letters=[
                {"session": S, "request": "t6", "reason": "rejected"},
                {"session": S, "request": "t11", "reason": "failed"},
                {"session": "reference:hang-1:0", "request": "reference", "reason": "failed"},
            ],
            live_sessions=[],
        )
    )
    return events


def check_events(events: Iterable[Event], directory: Path) -> Verdict:
    """Check a journal of these events."""
    path = directory / "journal"
    path.unlink(missing_ok=True)
    with Journal(path) as journal:
        for event in events:
            journal.write(event)
    return check([path])


Change = Callable[[list[Event]], list[Event]]
"""What turns the good run into another one."""


def is_at(turn: int, n: int, session: str = S) -> Callable[[Event], bool]:
    """Select what the recorder read under one id."""
    return lambda event: (
        isinstance(event, Heard)
        and (event.reader, event.session, event.turn, event.n) == ("recorder", session, turn, n)
    )


def in_turn(turn: int, session: str = S) -> Callable[[Event], bool]:
    """Select what the recorder read of a turn."""
    return lambda event: (
        isinstance(event, Heard)
        and (event.reader, event.session, event.turn) == ("recorder", session, turn)
    )


def without(picks: Callable[[Event], bool]) -> Change:
    return lambda events: [event for event in events if not picks(event)]


def adding(*more: Event) -> Change:
    return lambda events: [*events, *more]


def after(picks: Callable[[Event], bool], *more: Event) -> Change:
    """Insert events after the last one selected."""

    def change(events: list[Event]) -> list[Event]:
        place = max(index for index, event in enumerate(events) if picks(event)) + 1
        return [*events[:place], *more, *events[place:]]

    return change


def changing(picks: Callable[[Event], bool], **values: Any) -> Change:
    """Replace attributes of the selected events; ``fields`` are merged into theirs."""

    def changed(event: Event) -> Event:
        given = dict(values)
        if "fields" in given:
            fields = {**getattr(event, "fields", {}), **given["fields"]}
            given["fields"] = {name: value for name, value in fields.items() if value is not None}
        return msgspec.structs.replace(event, **given)

    def change(events: list[Event]) -> list[Event]:
        assert any(picks(event) for event in events)
        return [changed(event) if picks(event) else event for event in events]

    return change


def chained(*changes: Change) -> Change:
    def change(events: list[Event]) -> list[Event]:
        for one in changes:
            events = one(events)
        return events

    return change
