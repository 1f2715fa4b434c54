"""Pacing: when a frame may be published, counted in ticks of one frame.

One clock ticks every 20 ms for the whole worker. A turn is ``ahead`` of its listener by the frames
that are published and cannot have been played yet; each tick plays one. Counting in whole ticks
keeps all turns on one grid; comparing times as floats would now and then put two frames into one
tick and none into the next.
"""

import time

from voicefleet.schemas.audio import FRAME_MS

TICK_S = FRAME_MS / 1000


class TickClock:
    """The worker's frame clock. Ticks are counted from when it was created."""

    def __init__(self) -> None:
        self._origin = time.monotonic()

    def tick(self) -> int:
        """The latest tick that has passed."""
        return int((time.monotonic() - self._origin) / TICK_S)

    def at(self, tick: int) -> float:
        """The time of a tick, as of ``time.monotonic()``."""
        return self._origin + tick * TICK_S


class Pacer:
    """How far one turn may run ahead of real time.

    Args:
        lead_ms: How far ahead, in ms; with 0, frames are published as fast as they are made.
    """

    def __init__(self, lead_ms: int) -> None:
        self._lead = max(1, lead_ms // FRAME_MS) if lead_ms else None
        self._ahead = 0
        self._tick = 0
        self._dry = True

    @property
    def lead_frames(self) -> int | None:
        """How many frames may be published ahead of real time; ``None``: any number."""
        return self._lead

    @property
    def has_room(self) -> bool:
        """Whether a frame could be published before the next tick."""
        return self._lead is None or self._ahead < self._lead

    def due(self, tick: int) -> int | None:
        """How many frames may be published at this tick; ``None``: any number."""
        if self._lead is None:
            return None
        if tick > self._tick:
            played = tick - self._tick
            self._dry = self._dry or played > self._ahead
            self._ahead = max(0, self._ahead - played)
            self._tick = tick
        return self._lead - self._ahead

    def published(self, count: int, tick: int) -> None:
        """Count frames that were sent at this tick."""
        if self._dry and count:
            # Playback starts within a tick that has partly passed. Counting that tick as played
            # would exceed the lead by the part that had passed.
            self._dry = False
            self._tick = tick + 1
        self._ahead += count

    def taken_back(self, count: int) -> None:
        """Take back frames that were counted and then refused by the server."""
        self._ahead = max(0, self._ahead - max(0, count))
