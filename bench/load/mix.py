"""The soak's mix of calls, each in a new session."""

import random
from collections.abc import Callable, Iterator
from itertools import count
from typing import Final

from bench.live_sessions import long_text
from bench.load.call import Call, Kind, Step, asking
from bench.load.fleet import MODEL
from voicefleet.schemas.keys import Keys

CONTROL_S: Final = 10
"""The TTL of control keys, in seconds."""

_KEYS: Final = Keys()
_WEIGHTS: Final[dict[Kind, int]] = {
    "plain": 50,
    "streamed": 20,
    "stopped": 10,
    "interrupted": 10,
    "paused": 10,
}


def mix(seed: int, caller: int, prefix: str = "soak") -> Iterator[Call]:
    """The endless calls of one caller. ``prefix`` begins the names of its sessions."""
    rng = random.Random(f"{seed} {caller}")
    kinds = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()), k=997)
    for i in count():
        kind = kinds[i % len(kinds)]
        session = f"{prefix}-{caller}-{i}"
        yield Call(session=session, kind=kind, steps=_STEPS[kind](session, rng))


def _ask(session: str, request: str, at_s: float, seconds: float, **fields: int) -> Step:
    text = long_text(seconds)
    command = asking(_KEYS, MODEL, session, request, text=text, **fields)
    return Step(at_s=at_s, command=command, request=request)


def _set(session: str, value: str, at_s: float) -> Step:
    command = ("SET", _KEYS.control(session), value, "EX", CONTROL_S)
    return Step(at_s=at_s, command=command)


def _plain(session: str, rng: random.Random) -> tuple[Step, ...]:
    """One turn or two, the second one added while the first is spoken."""
    first = _ask(session, "r1", 0.0, rng.uniform(1.0, 6.0))
    if rng.random() < 0.5:
        return (first,)
    return (first, _ask(session, "r2", rng.uniform(0.1, 1.0), rng.uniform(1.0, 3.0)))


def _streamed(session: str, rng: random.Random) -> tuple[Step, ...]:
    """Text that is written word by word, faster than it is spoken."""
    words = long_text(rng.uniform(1.0, 5.0)).split()
    text = _KEYS.text(session, "r1")
    request = asking(_KEYS, MODEL, session, "r1", stream=1)
    pieces = [
        Step(at_s=0.05 * i, command=("XADD", text, "*", "text", f"{word} "))
        for i, word in enumerate(words)
    ]
    end = Step(at_s=0.05 * len(words), command=("XADD", text, "*", "end", 1))
    return (Step(at_s=0.0, command=request, request="r1"), *pieces, end)


def _stopped(session: str, rng: random.Random) -> tuple[Step, ...]:
    first = Step(
        at_s=0.0,
        command=asking(_KEYS, MODEL, session, "r1", text=long_text(8.0)),
        request="r1",
        expected=("stopped",),
    )
    return (first, _set(session, "stop:r1", rng.uniform(0.2, 4.0)))


def _interrupted(session: str, rng: random.Random) -> tuple[Step, ...]:
    first = Step(
        at_s=0.0,
        command=asking(_KEYS, MODEL, session, "r1", text=long_text(8.0)),
        request="r1",
        expected=("interrupted",),
    )
    return (first, _ask(session, "r2", rng.uniform(0.2, 4.0), rng.uniform(1.0, 3.0), interrupt=1))


def _paused(session: str, rng: random.Random) -> tuple[Step, ...]:
    begin = rng.uniform(0.2, 2.0)
    return (
        _ask(session, "r1", 0.0, rng.uniform(4.0, 6.0)),
        _set(session, "pause", begin),
        _set(session, "resume", begin + rng.uniform(0.3, 2.0)),
    )


_STEPS: Final[dict[Kind, Callable[[str, random.Random], tuple[Step, ...]]]] = {
    "plain": _plain,
    "streamed": _streamed,
    "stopped": _stopped,
    "interrupted": _interrupted,
    "paused": _paused,
}
