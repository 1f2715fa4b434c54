"""One utterance that upstream is asked for, as the threads that work on it see it.

Upstream knows a request by dictionaries of its model; what mends it needs more, and finds it by the
thread: the one that runs ``tts`` and the language model's, which ``tts`` starts.
"""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor


class CancelledError(Exception):
    """The request is no longer wanted. Ends upstream's work from inside."""


class UtteranceRequest:
    """An utterance in work.

    Args:
        seed: Of all its random draws, 64 bits.
        length: Speech tokens that it shall have; None: as many as the model finds right.
        device: Where the model's draws are made.
    """

    def __init__(self, seed: int, length: int | None, device: torch.device) -> None:
        self.length = length
        self.hop: int | None = None
        self.error: BaseException | None = None
        self.cancelled = False
        self.key: str | None = None
        self.thread: threading.Thread | None = None
        self.news = threading.Event()
        # Both are what torch.manual_seed would make of upstream's own global source.
        self.sampling: Tensor = torch.Generator(device).manual_seed(seed).get_state()
        self.noise = torch.Generator(device).manual_seed(seed)

    def cancel(self) -> None:
        """From any thread: end at the next token, the next chunk."""
        self.cancelled = True
        self.news.set()

    def fail(self, error: BaseException) -> None:
        """The language model's thread has died of ``error``."""
        self.error = error

    def check(self) -> None:
        """Raise what ended the request, if anything did."""
        if self.cancelled:
            raise CancelledError
        if self.error is not None:
            raise self.error

    def wait(self, timeout_s: float) -> None:
        """Until there is a token more or no more come; raises as ``check``."""
        self.news.wait(timeout_s)
        self.news.clear()
        self.check()


_thread = threading.local()


def current() -> UtteranceRequest | None:
    """What this thread works on."""
    return cast("UtteranceRequest | None", getattr(_thread, "request", None))


@contextmanager
def working_on(request: UtteranceRequest | None) -> Generator[None]:
    """In this block, this thread works on ``request``."""
    before = current()
    _thread.request = request
    try:
        yield
    finally:
        _thread.request = before
