"""The server's time, as a worker estimates it between heartbeats."""

import time


class ServerClock:
    """Server unix ms. It follows the monotonic clock, so that the host's clock may jump."""

    def __init__(self) -> None:
        self._offset_ms = time.time() * 1000 - time.monotonic() * 1000

    def set(self, server_ms: int, round_trip_ms: float = 0.0) -> None:
        """Set the clock by the server's reply, which was given half a round trip ago."""
        self._offset_ms = server_ms + round_trip_ms / 2 - time.monotonic() * 1000

    def now_ms(self) -> int:
        """Server unix ms, exact to the round trip of the last heartbeat."""
        return int(time.monotonic() * 1000 + self._offset_ms)
