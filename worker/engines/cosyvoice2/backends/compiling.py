"""``torch.compile`` that fails where it cannot compile, instead of falling back silently.

Not measured on a GPU yet.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.graphs import Graphs

T = TypeVar("T")

COMPILATIONS = 1024
"""Compilations of one function, one for each shape. Torch's own limit is 8; it runs further shapes
uncompiled."""


class CompiledGraphs(Graphs):
    """Compiles functions before capturing them; each takes tens of seconds, during warm-up."""

    def __init__(self, *, enabled: bool) -> None:
        super().__init__(enabled=enabled)
        settings: Any = torch._dynamo.config  # pyright: ignore
        settings.recompile_limit = settings.accumulated_recompile_limit = COMPILATIONS

    def _make(self, work: Callable[[], T], make_idle: Callable[[], None]) -> Callable[[], T]:
        return super()._make(compiled(work), make_idle)


def compiled(work: Callable[[], T]) -> Callable[[], T]:
    """Return ``work``, to be compiled when it is first called.

    Raises:
        CosyVoiceInitializationError: From that first call, if it cannot be compiled.
    """
    # fullgraph: a graph break would silently leave most of the work to Python.
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
