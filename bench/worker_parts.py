"""Which part of the worker a sampled call stack belongs to."""

from collections import Counter
from typing import Final

from bench.sampler import Samples, Stack

PARTS: Final = {
    "worker/engines/": "engine",
    "worker/audio/": "audio chain",
    "worker/text/": "text",
    "worker/synthesis/": "turn",
    "worker/publish/": "publish",
    "worker/store/": "publish",
    "wire/": "connection",
    "worker/": "rest of the worker",
}
"""Parts by the start of a path below ``voicefleet``; the first that fits counts."""

EVENT_LOOP: Final = "event loop"


def part_of(stack: Stack) -> str:
    """The part that the innermost function of ours belongs to; the event loop if there is none."""
    for call in stack:
        for beginning, part in PARTS.items():
            if call.startswith(beginning):
                return part
    return EVENT_LOOP


def shares(samples: Samples) -> dict[str, float]:
    """Each part's share of the processor time, largest first."""
    counted: Counter[str] = Counter()
    for stack, count in samples.stacks:
        counted[part_of(stack)] += count
    total = counted.total()
    return {part: count / total for part, count in counted.most_common()}
