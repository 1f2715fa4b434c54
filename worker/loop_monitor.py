"""Whether this process stood still: stopped, swapped out, or with its event loop blocked.

Who stood still for long cannot know what became of the requests in his hands meanwhile.
"""

import time

import anyio

TICKS = 6
"""So often it looks within the time that counts."""


class LoopMonitor:
    """Notes when the event loop runs.

    Args:
        silence_s: After so much silence a worker is taken for dead.
    """

    def __init__(self, silence_s: float) -> None:
        self._tick_s = silence_s / TICKS
        self._limit_s = silence_s - self._tick_s
        self._ran_at = time.monotonic()
        self._woke_at = 0.0

    async def run(self) -> None:
        """Note that the loop runs, until cancelled."""
        while True:
            self._note()
            await anyio.sleep(self._tick_s)

    def stood_still_since(self, moment: float) -> bool:
        """Whether the loop stood still after ``moment``, on the monotonic clock."""
        self._note()
        return self._woke_at > moment

    def _note(self) -> None:
        now = time.monotonic()
        if now - self._ran_at > self._limit_s:
            self._woke_at = now
        self._ran_at = now
