"""The checker accepts a good run, and finds each promise that is broken."""

from pathlib import Path

import pytest

from tests.verify.good_run import (
    DEADLINE_MS,
    OTHER,
    Change,
    S,
    adding,
    after,
    asked,
    capacity,
    chained,
    changing,
    check_events,
    end,
    frame,
    frames,
    good,
    heard,
    in_turn,
    is_at,
    spoken,
    without,
)
from verify.chaos.journal import (
    Answered,
    Asked,
    Capacity,
    ClientFailed,
    ControlSet,
    Event,
    Fault,
    FinalState,
    Heard,
    ReaderOutage,
    RolledBack,
)
from verify.chaos.verdict import PROMISES


def is_a(kind: type, **values: object):
    return lambda event: (
        isinstance(event, kind) and all(getattr(event, k) == v for k, v in values.items())
    )


def rolled_back(at: float, seen: str, newest: str, session: str = S) -> RolledBack:
    return RolledBack(at=at, reader="recorder", session=session, seen=seen, newest=newest)


def fault(at: float, until: float, kind: str, forgets: str = "nothing") -> Fault:
    return Fault(at=at, until=until, kind=kind, target="", forgets=forgets)  # type: ignore[arg-type]


MISSING_LETTER = [{"session": S, "request": "t6", "reason": "rejected"}]
TWICE = [*MISSING_LETTER, *MISSING_LETTER, {"session": S, "request": "t11", "reason": "failed"}]
LAST = is_at(14, 9)

BROKEN: list[tuple[str, str, Change]] = [
    ("one start", "no start", without(is_at(1, 0))),
    ("one start", "a start in the middle", changing(is_at(3, 4), kind="start")),
    ("one end", "no end", without(LAST)),
    ("one end", "two ends", after(LAST, end(1017.0, 14, 10, "t14", "completed", frames="8"))),
    ("one end", "unspoken and not n = 1", changing(is_at(5, 1), n=2)),
    ("one end", "the next turn begins before the end", without(is_at(1, 11))),
    ("nothing after", "a frame behind the end", after(LAST, frame(1017.0, 14, 10, "plain-1"))),
    (
        "dense",
        "a frame is missing",
        chained(without(is_at(1, 4)), changing(is_at(1, 11), fields={"frames": "9"})),
    ),
    (
        "turns dense",
        "a turn is missing",
        chained(without(in_turn(7)), without(is_a(Asked, request="t7"))),
    ),
    ("turns dense", "it begins at 2", changing(in_turn(1, OTHER), turn=2)),
    ("in order", "an older entry is read later", after(LAST, frame(1016.5, 14, 3, "plain-1"))),
    ("known", "something else in the stream", after(LAST, heard(1017.0, 14, 10, "other"))),
    ("frames counted", "too many", changing(is_at(1, 11), fields={"frames": "11"})),
    ("frame size", "half a frame", changing(is_at(1, 10), size=960)),
    ("header", "another rate", changing(is_at(1, 0), fields={"sample_rate": "24000"})),
    ("header", "another model", changing(is_at(1, 0), fields={"model": "piper"})),
    ("header", "no voice", changing(is_at(1, 0), fields={"voice": None})),
    ("header", "stereo", changing(is_at(1, 0), fields={"channels": "2"})),
    ("header", "no time", changing(is_at(1, 0), fields={"t": None})),
    ("header", "an end without a time", changing(is_at(1, 11), fields={"t": None})),
    ("header", "an end of another request", changing(is_at(1, 11), fields={"request": "t2"})),
    ("same", "an entry changes", after(is_at(1, 11), end(1000.4, 1, 11, "t1", "stopped"))),
    ("kept", "the newest entries are gone", after(LAST, rolled_back(1018.0, "14-9", "14-3"))),
    ("samples", "another frame", changing(is_at(3, 4), digest="noise")),
    (
        "samples",
        "frames swapped",
        chained(
            changing(is_at(3, 4), n=99), changing(is_at(3, 5), n=4), changing(is_at(3, 99), n=5)
        ),
    ),
    (
        "samples",
        "a whole that is none",
        chained(
            without(is_at(14, 9)),
            changing(
                is_at(14, 8),
                kind="end",
                digest="",
                size=0,
                fields={
                    "event": "end",
                    "request": "t14",
                    "reason": "completed",
                    "frames": "7",
                    "t": "1",
                    "text": None,
                },
            ),
        ),
    ),
    (
        "samples",
        "more than there is",
        chained(
            changing(LAST, n=10, fields={"frames": "9"}),
            after(is_at(14, 8), frame(1016.5, 14, 9, "plain-1")),
        ),
    ),
    ("texts", "other words", changing(is_at(1, 1), fields={"text": "other"})),
    ("texts", "words in the wrong place", changing(is_at(1, 5), fields={"text": "words"})),
    ("asked", "an answer to nobody", chained(adding(*spoken(1018.0, 15, "t99", "plain-0")))),
    ("answered", "a request without an answer", adding(asked(1018.0, "t15", "plain-0"))),
    ("once", "spoken twice", after(LAST, *spoken(1018.0, 15, "t1", "plain-0"))),
    ("once", "answered twice", after(LAST, end(1018.0, 15, 1, "t14", "stopped"))),
    (
        "order",
        "the later one first",
        chained(
            changing(is_a(Asked, request="t10"), request="t-"),
            changing(
                is_a(Asked, request="t1", session=S),
                request="t10",
                fields={"request": "t10", "deadline_ms": "1072000"},
            ),
            changing(is_a(Asked, request="t-"), request="t1", fields={"request": "t1"}),
        ),
    ),
    ("reason", "stopped, and nobody wished it", without(is_a(ControlSet, value="stop"))),
    (
        "reason",
        "stopped by a stop of an earlier one",
        changing(is_a(ControlSet, value="stop:t13"), value="stop:t12"),
    ),
    (
        "reason",
        "interrupted by nobody",
        changing(is_a(Asked, request="t3"), fields={"interrupt": "0"}),
    ),
    (
        "reason",
        "interrupted by an earlier one",
        chained(
            changing(is_a(Asked, request="t3"), fields={"interrupt": "0"}),
            changing(is_a(Asked, request="t1", session=S), fields={"interrupt": "1"}),
        ),
    ),
    (
        "reason",
        "expired without a deadline",
        changing(is_a(Asked, request="t7"), fields={"deadline_ms": None}),
    ),
    ("reason", "expired early", changing(is_at(7, 1), fields={"t": str(DEADLINE_MS - 200)})),
    ("reason", "a valid request rejected", changing(is_a(Asked, request="t6"), invalid=False)),
    (
        "reason",
        "an invalid one spoken",
        changing(is_a(Asked, request="t1", session=S), invalid=True),
    ),
    (
        "reason",
        "what never can be spoken",
        chained(
            changing(is_at(11, 1), fields={"reason": "completed", "error": None}),
            changing(is_a(FinalState), dead_letters=MISSING_LETTER),
        ),
    ),
    (
        "reason",
        "failed, though harmless",
        changing(is_a(Asked, request="t11"), utterance="plain-0"),
    ),
    ("reason", "failed without saying why", changing(is_at(11, 1), fields={"error": None})),
    ("reason", "a reason of its own", changing(is_at(1, 11), fields={"reason": "bored"})),
    (
        "reason",
        "text_timeout of text that came",
        chained(
            changing(is_at(8, 7), fields={"reason": "failed", "error": "text_timeout"}),
            changing(
                is_a(FinalState),
                dead_letters=[
                    *MISSING_LETTER,
                    {"session": S, "request": "t8", "reason": "failed"},
                    {"session": S, "request": "t11", "reason": "failed"},
                ],
            ),
        ),
    ),
    (
        "reason",
        "lease_lost, though no server forgot",
        changing(is_at(8, 7), fields={"reason": "failed", "error": "lease_lost"}),
    ),
    (
        "deadline",
        "begun too late",
        changing(is_a(Asked, request="t10"), fields={"deadline_ms": "1011000"}),
    ),
    (
        "stop",
        "frames go on",
        chained(
            changing(is_at(4, 4), at=1006.0),
            changing(is_at(4, 5), at=1006.0),
            changing(is_a(ControlSet, at=1005.0), at=1008.0),
        ),
    ),
    (
        "stop",
        "the end does not come",
        chained(
            changing(is_at(4, 5), at=1007.0),
            changing(is_at(5, 1), at=1007.0),
            changing(is_a(ControlSet, at=1005.0), at=1007.5),
        ),
    ),
    ("pause", "frames go on", changing(is_at(9, 4), at=1010.0)),
    (
        "goes on",
        "a turn hangs",
        chained(
            changing(is_a(Fault), skipped="not today"), changing(is_at(1, 11, OTHER), at=1036.0)
        ),
    ),
    (
        "served",
        "a request is left waiting",
        adding(asked(1060.0, "t2", "plain-0", OTHER), *spoken(1078.0, 2, "t2", "plain-0", OTHER)),
    ),
    (
        "readers",
        "a late reader reads something else",
        changing(is_a(Heard, reader="late", n=4), digest="noise"),
    ),
    ("readers", "a late reader misses an entry", without(is_a(Heard, reader="late", n=4))),
    (
        "readers",
        "a late reader alone reads it",
        adding(frame(1031.0, 3, 12, "plain-1", reader="late")),
    ),
    (
        "client",
        "an error for no reason",
        adding(
            ClientFailed(at=1018.0, session=S, request="t1", error="StreamGap: entries are missing")
        ),
    ),
    (
        "capacity",
        "a worker does not come back",
        changing(
            lambda e: isinstance(e, Capacity) and e.at > 1022,
            ready=1,
            slots_total=16,
            slots_free=15,
        ),
    ),
    (
        "capacity",
        "it comes back late",
        changing(
            lambda e: isinstance(e, Capacity) and 1022 < e.at < 1026,
            ready=1,
            slots_total=16,
            slots_free=15,
        ),
    ),
    ("ttl", "a key stays for ever", changing(is_a(FinalState), without_ttl=["tts:lease:{s}"])),
    ("pending", "an entry stays pending", changing(is_a(FinalState), pending={"tone-test": 1})),
    ("queued", "an entry stays in the queue", changing(is_a(FinalState), queued={"tone-test": 1})),
    ("slots", "a slot is gone", changing(is_a(FinalState), slots={"w1": (15, 16)})),
    ("idle", "a session goes on", changing(is_a(FinalState), live_sessions=[S])),
    ("dead letters", "one is missing", changing(is_a(FinalState), dead_letters=MISSING_LETTER)),
    ("dead letters", "one comes twice", changing(is_a(FinalState), dead_letters=TWICE)),
    (
        "dead letters",
        "one of a turn that was spoken",
        changing(
            is_a(FinalState),
            dead_letters=[*TWICE[1:], {"session": S, "request": "t1", "reason": "failed"}],
        ),
    ),
]

ALSO: dict[str, tuple[str, ...]] = {
    "no start": ("reason",),
    "a start in the middle": ("frames counted", "header", "samples", "readers"),
    "no end": ("answered",),
    "two ends": ("nothing after",),
    "the next turn begins before the end": ("answered",),
    "a frame behind the end": ("samples",),
    "a frame is missing": ("samples",),
    "something else in the stream": ("nothing after",),
    "another rate": ("frame size",),
    "the newest entries are gone": ("one end",),
    "another frame": ("readers",),
    "frames swapped": ("readers", "in order"),
    "spoken twice": ("stop", "order"),
    "answered twice": ("reason",),
}
"""What else is broken by the same change, as it must be."""

EMPTIED = fault(1018.0, 1018.1, "flushall", "all")
FAILED_OVER = fault(1017.0, 1017.5, "lost_tail", "tail")
A_NUMBER_IS_USED_AGAIN: tuple[Event, ...] = (
    asked(1016.6, "t15", "plain-1"),
    *spoken(1016.7, 15, "t15", "plain-1"),
    FAILED_OVER,
    rolled_back(1017.6, "15-9", "14-9"),
    asked(1018.0, "t16", "plain-0"),
    *spoken(1018.1, 15, "t16", "plain-0"),
)
HEARD_BY_ITS_CLIENT_ALONE: tuple[Event, ...] = (
    asked(1016.6, "t15", "plain-1"),
    Answered(at=1016.8, session=S, request="t15", reason="completed"),
    FAILED_OVER,
    asked(1018.0, "t16", "plain-0"),
)
LETTERS_LOST = changing(is_a(FinalState), dead_letters=[])

ALLOWED: list[tuple[str, Change]] = [
    ("nothing happens", lambda events: events),
    (
        "a new generation begins at 1, and speaks again",
        chained(
            after(
                LAST, EMPTIED, rolled_back(1019.0, "14-9", ""), *spoken(1019.1, 1, "t14", "plain-1")
            ),
            LETTERS_LOST,
        ),
    ),
    (
        "the turn that was spoken when all was forgotten goes on under its number, from its start",
        chained(
            without(is_at(14, 9)),
            after(is_at(14, 8), EMPTIED, rolled_back(1019.0, "14-8", "14-2")),
            after(is_a(RolledBack), *spoken(1019.1, 14, "t14", "plain-1")),
            LETTERS_LOST,
        ),
    ),
    (
        "another turn is spoken before it in the new generation",
        chained(
            without(is_at(14, 9)),
            after(is_at(14, 8), EMPTIED, rolled_back(1019.0, "14-8", "1-2")),
            adding(asked(1017.0, "t15", "plain-0"), *spoken(1019.1, 1, "t15", "plain-0")),
            adding(*spoken(1019.5, 14, "t14", "plain-1")),
            LETTERS_LOST,
        ),
    ),
    (
        "a forgotten tail is written again as it was",
        after(
            LAST,
            FAILED_OVER,
            rolled_back(1017.6, "14-9", "14-4"),
            *frames(1018.0, 14, 5, 8, "plain-1"),
            end(1018.2, 14, 9, "t14", "completed", worker="w2"),
        ),
    ),
    (
        "a turn that was cut is cut elsewhere, as its tail was forgotten",
        chained(
            adding(asked(1016.5, "t15", "plain-1"), *spoken(1016.6, 15, "t15", "plain-1")[:4]),
            adding(ControlSet(at=1016.7, session=S, value="stop")),
            adding(end(1016.8, 15, 4, "t15", "stopped"), FAILED_OVER),
            adding(rolled_back(1017.6, "15-4", "15-2"), *frames(1018.0, 15, 3, 6, "plain-1")),
            adding(end(1018.2, 15, 7, "t15", "stopped")),
        ),
    ),
    (
        "a turn whose end was forgotten is cut by what was wished since",
        after(
            LAST,
            FAILED_OVER,
            ControlSet(at=1017.55, session=S, value="stop"),
            rolled_back(1017.6, "14-9", "14-4"),
            end(1018.0, 14, 5, "t14", "stopped"),
        ),
    ),
    (
        "a number is used again, as its turn was forgotten as a whole",
        after(
            LAST,
            *A_NUMBER_IS_USED_AGAIN,
        ),
    ),
    (
        "a number is used again, and then the tail of who uses it is forgotten",
        after(
            LAST,
            *A_NUMBER_IS_USED_AGAIN,
            fault(1019.0, 1019.5, "lost_tail", "tail"),
            rolled_back(1019.6, "15-11", "15-7"),
            *spoken(1019.8, 15, "t16", "plain-0")[8:],
        ),
    ),
    (
        "a number is left out, as its turn was forgotten as a whole",
        after(
            LAST,
            asked(1016.6, "t15", "plain-1"),
            *spoken(1016.7, 15, "t15", "plain-1"),
            asked(1016.9, "t16", "plain-0"),
            *spoken(1017.0, 16, "t16", "plain-0")[:3],
            FAILED_OVER,
            rolled_back(1017.6, "16-2", "14-9"),
            *spoken(1018.1, 16, "t16", "plain-0"),
        ),
    ),
    (
        "the next generation is read before it is known to be one, and the last one's end is not",
        chained(
            without(is_at(14, 9)),
            after(is_at(14, 8), EMPTIED),
            adding(Answered(at=1017.9, session=S, request="t14", reason="completed")),
            adding(asked(1018.2, "t15", "plain-0"), *spoken(1018.3, 15, "t15", "plain-0")),
            adding(rolled_back(1019.0, "15-11", "15-11"), *spoken(1019.1, 15, "t15", "plain-0")),
            LETTERS_LOST,
        ),
    ),
    (
        "turns left out that were forgotten before the recorder read them, not their client",
        after(
            LAST,
            *HEARD_BY_ITS_CLIENT_ALONE,
            *spoken(1018.1, 16, "t16", "plain-0"),
        ),
    ),
    (
        "a server that was asked in between knew less, and then the beginning was trimmed",
        after(
            LAST,
            FAILED_OVER,
            rolled_back(1017.6, "14-9", "12-2"),
            rolled_back(1017.7, "12-2", "14-9"),
            *spoken(1018.1, 14, "t14", "plain-1")[4:],
        ),
    ),
    (
        "a stream whose time is over",
        chained(
            adding(rolled_back(1150.0, "14-9", "")),
            adding(asked(1151.0, "t20", "plain-0"), *spoken(1151.1, 1, "t20", "plain-0")),
        ),
    ),
    (
        "a request whose first reply was lost stands anywhere until it was answered",
        chained(
            adding(asked(1030.0, "t2", "plain-0", OTHER, entry=None)),
            adding(asked(1030.0, "t3", "plain-0", OTHER, entry=None)),
            adding(asked(1031.0, "t2", "plain-0", OTHER), asked(1031.0, "t3", "plain-0", OTHER)),
            adding(*spoken(1031.1, 2, "t3", "plain-0", OTHER)),
            adding(*spoken(1031.5, 3, "t2", "plain-0", OTHER)),
        ),
    ),
    (
        "requests that were added while a server forgot come in any order",
        chained(
            adding(asked(1030.0, "t2", "plain-0", OTHER), asked(1030.0, "t3", "plain-0", OTHER)),
            adding(*spoken(1030.1, 2, "t3", "plain-0", OTHER)),
            adding(*spoken(1030.5, 3, "t2", "plain-0", OTHER)),
            adding(fault(1028.0, 1031.0, "primary_stop", "tail")),
        ),
    ),
    (
        "a request that never arrived has no answer",
        adding(asked(1030.0, "t2", "plain-0", OTHER, entry=None)),
    ),
    (
        "lease_lost soon after a server forgot",
        chained(
            changing(is_at(14, 9), fields={"reason": "failed", "error": "lease_lost"}),
            adding(fault(1015.0, 1015.5, "lost_tail", "tail")),
        ),
    ),
    (
        "text that stopped",
        chained(
            changing(is_at(8, 7), fields={"reason": "failed", "error": "text_timeout"}, at=1038.3),
            without(
                lambda event: isinstance(event, Asked) and event.at > 1008 and event.session == S
            ),
            without(
                lambda event: (
                    isinstance(event, Heard) and event.turn > 8 and event.reader == "recorder"
                )
            ),
            without(lambda event: isinstance(event, ControlSet) and event.at > 1006),
            without(lambda event: getattr(event, "ended", False)),
            changing(
                is_a(FinalState),
                dead_letters=[*MISSING_LETTER, {"session": S, "request": "t8", "reason": "failed"}],
            ),
        ),
    ),
    (
        "frames that come late in the midst of a fault",
        chained(changing(is_at(9, 4), at=1010.0), adding(fault(1009.5, 1009.6, "slow_server"))),
    ),
    (
        "frames that come late to a recorder that was outage",
        chained(
            changing(is_at(9, 4), at=1010.0),
            adding(ReaderOutage(at=1009.3, until=1010.0, reader="recorder")),
        ),
    ),
    (
        "a pause that another client takes back",
        chained(changing(is_at(9, 4), at=1010.0), adding(fault(1009.0, 1009.2, "control_flood"))),
    ),
    (
        "an error of the client's while the server was away",
        adding(
            ClientFailed(
                at=1020.05, session=S, request="t1", error="ServerUnreachable: nobody answers"
            )
        ),
    ),
    (
        "dead letters that a server forgot",
        chained(adding(fault(1015.0, 1015.1, "flushall", "all"), capacity(1015.2)), LETTERS_LOST),
    ),
]

FORBIDDEN_AFTER_FORGETTING: list[tuple[str, str, Change]] = [
    (
        "samples",
        "what was read early of the next generation is another thing in it",
        chained(
            after(LAST, EMPTIED),
            adding(asked(1018.2, "t15", "plain-0"), *spoken(1018.3, 15, "t15", "plain-1")),
            adding(rolled_back(1019.0, "15-9", "15-9"), *spoken(1019.1, 15, "t15", "plain-0")),
            LETTERS_LOST,
        ),
    ),
    (
        "turns dense",
        "more turns are left out than were answered to their client",
        after(
            LAST,
            *HEARD_BY_ITS_CLIENT_ALONE,
            *spoken(1018.1, 17, "t16", "plain-0"),
        ),
    ),
    (
        "dense",
        "a tail is not written again, though what follows it is",
        after(
            LAST,
            FAILED_OVER,
            rolled_back(1017.6, "14-9", "14-4"),
            *spoken(1018.1, 14, "t14", "plain-1")[6:],
        ),
    ),
    (
        "same",
        "a completed turn ends elsewhere after its tail was forgotten",
        after(
            LAST,
            FAILED_OVER,
            rolled_back(1017.6, "14-9", "14-4"),
            *frames(1018.0, 14, 5, 7, "plain-1"),
            end(1018.2, 14, 8, "t14", "failed", error="lease_lost"),
        ),
    ),
    (
        "same",
        "a turn that had not ended is cut below what was heard of it",
        chained(
            without(is_at(14, 9)),
            after(
                is_at(14, 8),
                FAILED_OVER,
                ControlSet(at=1017.55, session=S, value="stop"),
                rolled_back(1017.6, "14-8", "14-4"),
                end(1018.0, 14, 5, "t14", "stopped"),
            ),
        ),
    ),
    (
        "samples",
        "a forgotten tail is written otherwise",
        chained(
            after(
                LAST,
                FAILED_OVER,
                rolled_back(1017.6, "14-9", "14-4"),
                *frames(1018.0, 14, 5, 8, "plain-0"),
                end(1018.2, 14, 9, "t14", "completed"),
            ),
        ),
    ),
    (
        "same",
        "a number is used again, though some of its turn is still there",
        after(
            LAST,
            asked(1016.6, "t15", "plain-1"),
            *spoken(1016.7, 15, "t15", "plain-1"),
            FAILED_OVER,
            rolled_back(1017.6, "15-9", "15-0"),
            *spoken(1018.1, 15, "t16", "plain-1")[1:],
        ),
    ),
    (
        "same",
        "a number is used again, and then the tail of who uses it becomes another",
        after(
            LAST,
            *A_NUMBER_IS_USED_AGAIN,
            fault(1019.0, 1019.5, "lost_tail", "tail"),
            rolled_back(1019.6, "15-11", "15-7"),
            *frames(1019.8, 15, 8, 10, "plain-1"),
            end(1020.0, 15, 11, "t16", "completed"),
        ),
    ),
    (
        "once",
        "spoken twice in the new generation",
        chained(
            after(
                LAST, EMPTIED, rolled_back(1019.0, "14-9", ""), *spoken(1019.1, 1, "t14", "plain-1")
            ),
            after(is_at(1, 9), *spoken(1019.5, 2, "t14", "plain-1")),
            LETTERS_LOST,
        ),
    ),
    (
        "turns dense",
        "a new generation leaves numbers out",
        chained(
            after(LAST, EMPTIED, rolled_back(1019.0, "14-9", "3-2")),
            adding(*spoken(1019.1, 3, "t14", "plain-1")),
            LETTERS_LOST,
        ),
    ),
]


def test_a_good_run_passes(tmp_path: Path) -> None:
    verdict = check_events(good(), tmp_path)
    assert verdict.violations == ()
    assert verdict.holds
    assert verdict.requests == 15
    assert verdict.ends == {
        "completed": 7,
        "stopped": 4,
        "interrupted": 1,
        "rejected": 1,
        "expired": 1,
        "failed": 1,
    }


@pytest.mark.parametrize(("why", "change"), ALLOWED, ids=[why for why, _ in ALLOWED])
def test_what_is_allowed_passes(why: str, change: Change, tmp_path: Path) -> None:
    del why
    assert check_events(change(good()), tmp_path).violations == ()


@pytest.mark.parametrize(
    ("promise", "how", "change"), BROKEN, ids=[f"{promise}: {how}" for promise, how, _ in BROKEN]
)
def test_a_broken_promise_is_found(promise: str, how: str, change: Change, tmp_path: Path) -> None:
    verdict = check_events(change(good()), tmp_path)
    assert promise in verdict.by_promise
    assert set(verdict.by_promise) <= {promise, *ALSO.get(how, ())}
    assert not verdict.holds


@pytest.mark.parametrize(
    ("promise", "how", "change"),
    FORBIDDEN_AFTER_FORGETTING,
    ids=[how for _, how, _ in FORBIDDEN_AFTER_FORGETTING],
)
def test_forgetting_is_no_excuse(promise: str, how: str, change: Change, tmp_path: Path) -> None:
    del how
    assert promise in check_events(change(good()), tmp_path).by_promise


def test_each_promise_is_tried() -> None:
    assert {promise for promise, _, _ in BROKEN} == set(PROMISES)
