"""What PROTOCOL.md promises, of an audio stream and of a fleet that has nothing left to do."""

from collections.abc import Mapping
from typing import Any

from verify.model_check.fleets import Ask
from verify.model_check.outboxes import pcm

Entries = tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


class BrokenPromise(Exception):
    """What was broken."""


def check_stream(entries: Entries, asks: tuple[Ask, ...], *, may_fail: bool) -> None:
    """Check a session's whole stream; ``asks`` are the session's, in their order.

    Raises:
        BrokenPromise: What a reader may rely on does not hold.
    """
    first = {ask.name: ask for ask in reversed(asks)}
    order = list(dict.fromkeys(ask.name for ask in asks))
    names: list[str] = []
    turn, n, open_turn = 0, 0, False
    for entry, flat in entries:
        at, number = (int(part) for part in entry.split("-"))
        fields = dict(flat)
        if at != turn:
            _demand(not open_turn, f"turn {at} begins before the end of turn {turn}")
            _demand(at == turn + 1, f"turn {at} follows turn {turn}")
            spoken = fields.get("event") == "start"
            _demand(number == (0 if spoken else 1), f"turn {at} begins with entry {number}")
            names.append(fields.get("request", ""))
            turn, n, open_turn = at, -1 if spoken else 0, True
        _demand(open_turn, f"entry {entry} comes after the end")
        _demand(number == n + 1, f"entry {entry} comes after {turn}-{n}")
        n = number
        ask = first.get(names[-1])
        _demand(ask is not None, f"turn {turn} is of no request")
        assert ask is not None
        if "pcm" in fields:
            _demand(fields["pcm"] == pcm(ask.name, n), f"frame {entry} is {fields['pcm']}")
        elif fields.get("event") == "end":
            _check_end(entry, fields, ask, n, may_fail=may_fail)
            open_turn = False
        else:
            _demand(fields.get("event") == "start" and n == 0, f"a second start at {entry}")
    _demand(len(set(names)) == len(names), f"answered twice: {names}")
    _demand(names == order[: len(names)], f"spoken in the order {names}")


def _check_end(entry: str, fields: Mapping[str, str], ask: Ask, n: int, *, may_fail: bool) -> None:
    reason = fields["reason"]
    _demand(fields["request"] == ask.name, f"the end {entry} is of {fields['request']}")
    _demand(fields["frames"] == str(n - 1), f"the end {entry} says {fields['frames']} frames")
    if ask.is_unspoken:
        expected = "rejected" if ask.is_rejected else "expired"
        _demand(reason == expected and n == 1, f"the end {entry} is {reason}")
    elif reason == "failed":
        _demand(may_fail, f"the end {entry} is failed: {fields.get('error')}")
    else:
        whole = reason == "completed" and n == ask.frames + 1
        _demand(whole, f"the end {entry} is {reason} after {n - 1} frames")


def check_growth(before: Entries, after: Entries) -> None:
    """Nothing that a reader may have seen goes or changes."""
    kept = after[: len(before)]
    _demand(kept == before, f"what was published has changed: {before} became {after}")


def check_memory(forgotten: tuple[tuple[str, str, Any], ...], key: str, after: Entries) -> None:
    """What a failover forgot and comes again is what readers have read."""
    there = dict(after)
    for of, entry, fields in forgotten:
        if of == key and entry in there:
            again = there[entry]
            _demand(again == fields, f"{entry} was {fields} and is {again} after the failover")


def is_complete(entries: Entries, asks: tuple[Ask, ...]) -> bool:
    """Whether each request has its end."""
    ended = [dict(flat)["request"] for _, flat in entries if ("event", "end") in flat]
    return sorted(ended) == sorted({ask.name for ask in asks})


def has_end(entries: Entries, ask: Ask) -> bool:
    """Whether a request has its end."""
    return any(("event", "end") in flat and ("request", ask.name) in flat for _, flat in entries)


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BrokenPromise(otherwise)
