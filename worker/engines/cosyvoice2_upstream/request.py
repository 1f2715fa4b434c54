"""The state of one utterance's request to upstream, which the patches look up by thread.

Two threads work on a request: the one that runs ``tts``, and the language model's, which ``tts``
starts. Upstream itself keeps a request's state in dictionaries of its model.
"""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor


class CancelledError(Exception):
    """The request was cancelled. Raised inside upstream's code to end its work."""


class UtteranceRequest:
    """An utterance that upstream is speaking.

    Args:
        seed: The seed of its random draws, 64 bits.
        length: The number of speech tokens to decode; None: the model decides.
        device: The device that the model draws random numbers on.
    """

    def __init__(self, seed: int, length: int | None, device: torch.device) -> None:
        self.length = length
        self.hop: int | None = None
        self.error: BaseException | None = None
        self.cancelled = False
        self.key: str | None = None
        self.thread: threading.Thread | None = None
        self.news = threading.Event()
        # Both equal upstream's global generator after torch.manual_seed.
        self.sampling: Tensor = torch.Generator(device).manual_seed(seed).get_state()
        self.noise = torch.Generator(device).manual_seed(seed)

    def cancel(self) -> None:
        """End the request at its next token or chunk. May be called from any thread."""
        self.cancelled = True
        self.news.set()

    def fail(self, error: BaseException) -> None:
        """Record that the language model's thread failed with ``error``."""
        self.error = error

    def check(self) -> None:
        """Raise ``CancelledError`` or the error that ended the request, if it has ended."""
        if self.cancelled:
            raise CancelledError
        if self.error is not None:
            raise self.error

    def wait(self, timeout_s: float) -> None:
        """Wait for the next token or the end of decoding; raises as ``check``."""
        self.news.wait(timeout_s)
        self.news.clear()
        self.check()


_thread = threading.local()


def current() -> UtteranceRequest | None:
    """The request that this thread works on, if any."""
    return cast("UtteranceRequest | None", getattr(_thread, "request", None))


@contextmanager
def working_on(request: UtteranceRequest | None) -> Generator[None]:
    """In this context, the current thread works on ``request``."""
    before = current()
    _thread.request = request
    try:
        yield
    finally:
        _thread.request = before
