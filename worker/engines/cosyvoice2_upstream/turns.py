"""Runs each turn in a thread, in which upstream speaks its utterances one after another."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceOOMError, CosyVoiceSynthesisError
from voicefleet.worker.engines.cosyvoice2.out_of_memory import is_out_of_memory
from voicefleet.worker.engines.cosyvoice2_upstream.request import CancelledError, UtteranceRequest
from voicefleet.worker.engines.hosting.messages import Audio, Failed, Spoken
from voicefleet.worker.engines.protocol import EngineError, Mark, Samples

TurnEvent = Audio | Spoken | Failed
Work = tuple[UtteranceRequest, Callable[[UtteranceRequest], Iterator[Samples]]]


@dataclass(frozen=True)
class QueuedUtterance:
    """A piece of text to be spoken as one.

    ``begin``, called in the turn's thread, makes its request and its chunks; None stands for
    ``pause`` samples of silence. ``marks`` are sent with its first audio.
    """

    begin: Callable[[], Work] | None
    pause: int
    marks: tuple[Mark, ...]


class TurnThread:
    """Speaks the utterances that are pushed, and reports audio, end or failure.

    It pauses while more than ``max_ahead`` samples have not been consumed. After ``cancel`` it
    reports nothing more.
    """

    def __init__(
        self, turn: int, max_ahead: int, report: Callable[["TurnThread", TurnEvent], None]
    ) -> None:
        self.turn = turn
        self._max_ahead = max_ahead
        self._report = report
        self._utterances = queue.SimpleQueue[QueuedUtterance | None]()
        self._asked = 0
        self._done = 0
        self._produced = 0
        self._consumed = 0
        self._changed = threading.Condition()
        self._request: UtteranceRequest | None = None
        self._cancelled = False
        self._thread = threading.Thread(target=self._run, name=f"turn {turn}", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a report will come before the next command."""
        ahead = self._produced - self._consumed > self._max_ahead
        return self._done < self._asked and not ahead

    def push(self, utterance: QueuedUtterance | None) -> None:
        """Add the next utterance; None: no other comes."""
        self._asked += 1
        self._utterances.put(utterance)

    def consumed(self, samples: int) -> None:
        """Record how many samples have been consumed in total."""
        with self._changed:
            self._consumed = samples
            self._changed.notify()

    def cancel(self) -> None:
        """End at the next token or chunk, without further reports. Returns at once."""
        with self._changed:
            self._cancelled = True
            if self._request is not None:
                self._request.cancel()
            self._changed.notify()
        self._utterances.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait until the thread has ended."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while (utterance := self._utterances.get()) is not None:
                self._speak(utterance)
                self._done += 1
            self._report_event(Spoken(self.turn))
        except CancelledError:
            pass
        except Exception as error:
            self._report_event(_failure(self.turn, error))

    def _speak(self, utterance: QueuedUtterance) -> None:
        marks = utterance.marks
        with closing(self._chunks(utterance)) as chunks:
            for samples in chunks:
                if len(samples):
                    self._report_event(Audio.of(self.turn, samples, marks))
                    self._produced += len(samples)
                    marks = ()
                self._wait_for_listener()

    def _chunks(self, utterance: QueuedUtterance) -> Generator[Samples]:
        if utterance.begin is None:
            yield np.zeros(utterance.pause, dtype=np.float32)
            return
        request, speak = utterance.begin()
        with self._changed:
            if self._cancelled:
                raise CancelledError
            self._request = request
        yield from speak(request)

    def _wait_for_listener(self) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._cancelled or self._produced - self._consumed <= self._max_ahead
            )
            if self._cancelled:
                raise CancelledError

    def _report_event(self, report: TurnEvent) -> None:
        if not self._cancelled:
            self._report(self, report)


def _failure(turn: int, error: Exception) -> Failed:
    if is_out_of_memory(error):
        first = str(error).partition("\n")[0] or type(error).__name__
        error = CosyVoiceOOMError(f"out of memory: {first}")
        torch.cuda.empty_cache()
    elif not isinstance(error, EngineError):
        error = CosyVoiceSynthesisError(f"upstream failed: {type(error).__name__}: {error}")
    return Failed(turn, "retry", str(error))
