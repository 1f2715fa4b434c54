"""What docs/protocol.md promises of an audio stream, and of a fleet that has finished."""

from collections.abc import Mapping
from typing import Any

from verify.model_check.fleets import Request
from verify.model_check.outboxes import pcm

Entries = tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


class BrokenInvariant(Exception):
    """An invariant does not hold."""


def check_stream(entries: Entries, requests: tuple[Request, ...], *, may_fail: bool) -> None:
    """Check a session's whole stream; ``requests`` are the session's, in their order.

    Raises:
        BrokenInvariant: What a reader may rely on does not hold.
    """
    first = {request.name: request for request in reversed(requests)}
    order = list(dict.fromkeys(request.name for request in requests))
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
        request = first.get(names[-1])
        _demand(request is not None, f"turn {turn} is of no request")
        assert request is not None
        if "pcm" in fields:
            _demand(fields["pcm"] == pcm(request.name, n), f"frame {entry} is {fields['pcm']}")
        elif fields.get("event") == "end":
            _check_end(entry, fields, request, n, may_fail=may_fail)
            open_turn = False
        else:
            _demand(fields.get("event") == "start" and n == 0, f"a second start at {entry}")
    _demand(len(set(names)) == len(names), f"answered twice: {names}")
    _demand(names == order[: len(names)], f"spoken in the order {names}")


def _check_end(
    entry: str, fields: Mapping[str, str], request: Request, n: int, *, may_fail: bool
) -> None:
    reason = fields["reason"]
    _demand(fields["request"] == request.name, f"the end {entry} is of {fields['request']}")
    _demand(fields["frames"] == str(n - 1), f"the end {entry} says {fields['frames']} frames")
    if request.is_unspoken:
        expected = "rejected" if request.is_rejected else "expired"
        _demand(reason == expected and n == 1, f"the end {entry} is {reason}")
    elif reason == "failed":
        _demand(may_fail, f"the end {entry} is failed: {fields.get('error')}")
    else:
        whole = reason == "completed" and n == request.frames + 1
        _demand(whole, f"the end {entry} is {reason} after {n - 1} frames")


def check_growth(before: Entries, after: Entries) -> None:
    """Check that entries which a reader may have seen stay as they are."""
    kept = after[: len(before)]
    _demand(kept == before, f"what was published has changed: {before} became {after}")


def check_memory(forgotten: tuple[tuple[str, str, Any], ...], key: str, after: Entries) -> None:
    """Check that entries which a failover lost come back as readers have read them."""
    there = dict(after)
    for of, entry, fields in forgotten:
        if of == key and entry in there:
            again = there[entry]
            _demand(again == fields, f"{entry} was {fields} and is {again} after the failover")


def is_complete(entries: Entries, requests: tuple[Request, ...]) -> bool:
    """Whether every request has its end."""
    ended = [dict(flat)["request"] for _, flat in entries if ("event", "end") in flat]
    return sorted(ended) == sorted({request.name for request in requests})


def has_end(entries: Entries, request: Request) -> bool:
    """Whether a request has its end."""
    return any(
        ("event", "end") in flat and ("request", request.name) in flat for _, flat in entries
    )


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BrokenInvariant(otherwise)
