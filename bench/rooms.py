"""Which part of the worker a sampled stack belongs to."""

from collections import Counter
from typing import Final

from bench.sampler import Samples, Stack

ROOMS: Final = {
    "worker/engines/": "engine",
    "worker/audio/": "audio chain",
    "worker/text/": "text",
    "worker/turn.py": "turn",
    "worker/outbox.py": "publish",
    "worker/pacing.py": "publish",
    "worker/publisher.py": "publish",
    "worker/scripts.py": "publish",
    "wire/": "connection",
    "worker/": "rest of the worker",
}
"""Beginning of a path -> its room; the first that fits."""

EVENT_LOOP: Final = "event loop"


def room_of(stack: Stack) -> str:
    """The room of the innermost function of ours; without one the loop is at its own work."""
    for call in stack:
        for beginning, room in ROOMS.items():
            if call.startswith(beginning):
                return room
    return EVENT_LOOP


def shares(samples: Samples) -> dict[str, float]:
    """Each room's share of the processor time, largest first."""
    counted: Counter[str] = Counter()
    for stack, count in samples.stacks:
        counted[room_of(stack)] += count
    total = counted.total()
    return {room: count / total for room, count in counted.most_common()}
