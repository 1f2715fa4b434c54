"""Figures of the latest turns, for the worker's record."""

from collections import deque

RECENT_TURNS = 256


class Stats:
    """First-audio latencies and compute time of recent turns."""

    def __init__(self) -> None:
        self._first_audio_ms: deque[float] = deque(maxlen=RECENT_TURNS)
        self._work: deque[tuple[float, float]] = deque(maxlen=RECENT_TURNS)

    def add(self, first_audio_ms: float | None, engine_s: float, audio_s: float) -> None:
        """Count one turn. The latency is ``None`` where another worker published first."""
        if first_audio_ms is not None:
            self._first_audio_ms.append(first_audio_ms)
        if audio_s > 0:
            self._work.append((engine_s, audio_s))

    def first_audio_ms(self, quantile: float) -> float | None:
        """The given quantile (0 to 1), nearest rank; ``None`` before the first turn."""
        ranked = sorted(self._first_audio_ms)
        return ranked[min(int(quantile * len(ranked)), len(ranked) - 1)] if ranked else None

    @property
    def rtf(self) -> float | None:
        """Engine time per second of audio."""
        audio_s = sum(audio for _, audio in self._work)
        return sum(engine for engine, _ in self._work) / audio_s if audio_s else None
