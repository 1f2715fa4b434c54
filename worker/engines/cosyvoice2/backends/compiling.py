"""``torch.compile`` that never falls back to what it was to replace.

Unmeasured: no GPU was at hand.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.graphs import Graphs

T = TypeVar("T")

COMPILATIONS = 1024
"""Of one function, for its many shapes. From eight on torch would leave the rest as they are."""


class CompiledGraphs(Graphs):
    """Graphs of compiled functions. Compiling takes tens of seconds for each, in warm-up.

    Args:
        enabled: Whether to capture what was compiled.
    """

    def __init__(self, *, enabled: bool) -> None:
        super().__init__(enabled=enabled)
        settings: Any = torch._dynamo.config  # pyright: ignore
        settings.recompile_limit = settings.accumulated_recompile_limit = COMPILATIONS

    def _make(self, work: Callable[[], T], make_idle: Callable[[], None]) -> Callable[[], T]:
        return super()._make(compiled(work), make_idle)


def compiled(work: Callable[[], T]) -> Callable[[], T]:
    """``work`` compiled whole, when it is first called.

    Raises:
        CosyVoiceInitializationError: From that first call: it cannot be compiled.
    """
    # Whole: a break in the middle would silently leave most of it to Python.
    ready: Callable[[], T] = torch.compile(work, dynamic=False, fullgraph=True)

    def call() -> T:
        try:
            return ready()
        except RuntimeError as error:
            if not isinstance(error, torch._dynamo.exc.TorchDynamoException):  # pyright: ignore
                raise
            first = next(iter(str(error).strip().splitlines()), "")
            raise CosyVoiceInitializationError(
                f"compile: torch cannot compile a part of the model ({type(error).__name__}: "
                f"{first}): set compile: false, or install the compiler that it names"
            ) from error

    return call
