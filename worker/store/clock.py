"""The server's time, as a worker knows it between heartbeats."""

import time


class ServerClock:
    """Server unix ms. Runs on the monotonic clock, so the host's wall clock may jump."""

    def __init__(self) -> None:
        self._offset_ms = time.time() * 1000 - time.monotonic() * 1000

    def set(self, server_ms: int, round_trip_ms: float = 0.0) -> None:
        """Take over what the server just said, half a round trip ago."""
        self._offset_ms = server_ms + round_trip_ms / 2 - time.monotonic() * 1000

    def now_ms(self) -> int:
        """Unix ms in server time, within the last heartbeat's round trip."""
        return int(time.monotonic() * 1000 + self._offset_ms)
