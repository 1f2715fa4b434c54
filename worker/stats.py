"""Latency and speed of the latest turns, for the worker's record."""

from collections import deque

RECENT_TURNS = 256
"""How many of the latest turns count."""


class Stats:
    """First-audio latency, and engine time per second of audio, of recent turns."""

    def __init__(self) -> None:
        self._first_audio_ms: deque[float] = deque(maxlen=RECENT_TURNS)
        self._work: deque[tuple[float, float]] = deque(maxlen=RECENT_TURNS)

    def add(self, first_audio_ms: float | None, engine_s: float, audio_s: float) -> None:
        """Count one turn.

        Args:
            first_audio_ms: From the request to the first frame; ``None`` where another worker
                published that.
            engine_s: Seconds spent waiting for the engine.
            audio_s: Seconds of audio that it made.
        """
        if first_audio_ms is not None:
            self._first_audio_ms.append(first_audio_ms)
        if audio_s > 0:
            self._work.append((engine_s, audio_s))

    def first_audio_ms(self, quantile: float) -> float | None:
        """The quantile (0 to 1) of latencies, by nearest rank; ``None`` before the first turn."""
        ranked = sorted(self._first_audio_ms)
        return ranked[min(int(quantile * len(ranked)), len(ranked) - 1)] if ranked else None

    @property
    def rtf(self) -> float | None:
        """Engine seconds per second of audio; ``None`` before the first turn."""
        audio_s = sum(audio for _, audio in self._work)
        return sum(engine for engine, _ in self._work) / audio_s if audio_s else None
