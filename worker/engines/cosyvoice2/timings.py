"""Times the phases of load and warm-up."""

import time
from collections.abc import Generator
from contextlib import contextmanager


class Timings(dict[str, float]):
    """Milliseconds by phase."""

    @contextmanager
    def measure(self, phase: str) -> Generator[None]:
        """Time the block as ``phase``."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self[phase] = round(1000 * (time.monotonic() - begun), 1)
