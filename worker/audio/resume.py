"""Points where a turn can be resumed so that its frames equal those of the uninterrupted turn."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from voicefleet.schemas.audio import FRAME_MS
from voicefleet.worker.audio import limiter, resample

SETTLING_MS = resample.SETTLING_MS + limiter.MEMORY_MS
"""How long after its start a resumed ``AudioChain`` gives the frames of the uninterrupted turn."""


Count = Annotated[int, Meta(ge=0)]


class ResumePoint(msgspec.Struct, frozen=True):
    """A point where a turn can be resumed: the start of one of its segments.

    Segment number ``segment`` begins at character ``char`` of the turn's whole text and at
    sample ``native`` of its audio at the engine's native rate.
    """

    segment: Count
    char: Count
    native: Count


def resume_point(points: Sequence[ResumePoint], n: int, native_rate: int) -> ResumePoint | None:
    """The latest point from which the frames ``n``, ``n + 1``, ... can be made again.

    ``None``: only from the turn's start.
    """
    begins_ms = (n - 1) * FRAME_MS
    settled = (
        point for point in points if point.native * 1000 <= (begins_ms - SETTLING_MS) * native_rate
    )
    return max(settled, key=lambda point: point.native, default=None)
