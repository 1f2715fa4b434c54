"""Where a turn can be taken up so that its frames come out as if nothing had happened."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from voicefleet.schemas.audio import FRAME_MS
from voicefleet.worker.audio import limiter, resample

SETTLING_MS = resample.SETTLING_MS + limiter.MEMORY_MS
"""A chain started in mid-turn is, from this much later on, the same as one started with it."""


Count = Annotated[int, Meta(ge=0)]


class ResumePoint(msgspec.Struct, frozen=True):
    """A place where a turn can be taken up: the beginning of one of its segments.

    Segment number ``segment`` begins at character ``char`` of the turn's whole text and at
    sample ``native`` of its audio at the engine's native rate.
    """

    segment: Count
    char: Count
    native: Count


def resume_point(points: Sequence[ResumePoint], n: int, native_rate: int) -> ResumePoint | None:
    """The latest point from which the frames ``n``, ``n + 1``, ... can be made again.

    ``None``: only the turn's start will do.
    """
    begins_ms = (n - 1) * FRAME_MS
    settled = (
        point for point in points if point.native * 1000 <= (begins_ms - SETTLING_MS) * native_rate
    )
    return max(settled, key=lambda point: point.native, default=None)
