"""The edges of a synthesised sentence: where its sound begins and ends, and the pause after it.

VITS pads sentences with 35 to 60 ms of near-silence before and about 200 ms after. Listeners wait
for the first, and the second makes pauses that depend on chance.
"""

import numpy as np

from voicefleet.worker.engines.protocol import Samples

AUDIBLE = 0.004
"""What counts as sound: an amplitude of -48 dBFS."""

_PREROLL_S = 0.015
_RELEASE_S = 0.040
_FADE_IN_S = 0.004
_FADE_OUT_S = 0.020

_SENTENCE_ENDS = frozenset(".!?…。！？؟।")  # noqa: RUF001
_CLAUSE_ENDS = frozenset(",;:–—、，；：،؛")  # noqa: RUF001
_CLOSERS = "\"'”’»)]} \t\r\n"  # noqa: RUF001


def pause_after(text: str) -> float:
    """Seconds of silence after a segment: long after sentences, short where one was cut."""
    last = text.rstrip(_CLOSERS)[-1:]
    if last in _SENTENCE_ENDS:
        return 0.20
    return 0.09 if last in _CLAUSE_ENDS else 0.03


class SentenceEdges:
    """Trims one sentence while its windows arrive, and closes it with an exact pause.

    Args:
        rate: Sample rate in Hz.
        pause_s: Seconds of exact zeros after the sound.
    """

    def __init__(self, rate: int, pause_s: float) -> None:
        self._rate = rate
        self._pause = np.zeros(round(pause_s * rate), dtype=np.float32)
        self._begun = False

    def shape(self, window: Samples, *, last: bool) -> Samples:
        """The next window of the sentence, float32 ``[n]``, as it is to be heard."""
        if not self._begun:
            window = self._trim_start(window)
        if last:
            window = np.concatenate((self._trim_end(window), self._pause))
        return window

    def _trim_start(self, window: Samples) -> Samples:
        loud = np.flatnonzero(np.abs(window) >= AUDIBLE)
        if not len(loud):
            return window[:0]
        self._begun = True
        window = window[max(0, int(loud[0]) - self._samples(_PREROLL_S)) :].copy()
        fade = min(len(window), self._samples(_FADE_IN_S))
        window[:fade] *= np.linspace(0.0, 1.0, fade, endpoint=False, dtype=np.float32)
        return window

    def _trim_end(self, window: Samples) -> Samples:
        loud = np.flatnonzero(np.abs(window) >= AUDIBLE)
        end = (int(loud[-1]) + 1 if len(loud) else 0) + self._samples(_RELEASE_S)
        window = window[:end].copy()
        fade = min(len(window), self._samples(_FADE_OUT_S))
        window[len(window) - fade :] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
        return window

    def _samples(self, seconds: float) -> int:
        return round(seconds * self._rate)
