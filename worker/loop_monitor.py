"""Find out whether this process stood still: stopped, swapped out, or its event loop blocked.

After a long standstill, other workers may have taken over this worker's requests.
"""

import time

import anyio

TICKS = 6
"""How often it looks within ``silence_s``."""


class LoopMonitor:
    """Notes when the event loop runs.

    Args:
        silence_s: After so long without a heartbeat, others take this worker for dead.
    """

    def __init__(self, silence_s: float) -> None:
        self._tick_s = silence_s / TICKS
        self._limit_s = silence_s - self._tick_s
        self._ran_at = time.monotonic()
        self._woke_at = 0.0

    async def run(self) -> None:
        """Look at the clock now and then, until cancelled."""
        while True:
            self._note()
            await anyio.sleep(self._tick_s)

    def stood_still_since(self, moment: float) -> bool:
        """Whether the loop stood still for that long and ran again after ``moment`` (monotonic)."""
        self._note()
        return self._woke_at > moment

    def _note(self) -> None:
        now = time.monotonic()
        if now - self._ran_at > self._limit_s:
            self._woke_at = now
        self._ran_at = now
