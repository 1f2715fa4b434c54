"""Counts the operations that the host starts on the device, and those that wait for it."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING: Final = frozenset(
    {
        "aten::_local_scalar_dense",
        "aten::nonzero",
        "aten::is_nonzero",
        "aten::equal",
        "aten::masked_select",
        "aten::_unique2",
    }
)
"""Operations that make the host wait for a result of the device."""

_NO_WORK: Final = frozenset({"aten::empty", "aten::empty_strided", "aten::empty_like"})


class Operations(msgspec.Struct, kw_only=True):
    """``launches`` counts operations that start kernels, without views and allocations.

    ``waiting`` counts operations that make the host wait, by name. ``synchronised_a_turn`` counts
    synchronising calls that CUDA reports, copies from and to pageable memory included.
    """

    launches: int
    waiting: dict[str, int]
    commonest: dict[str, int]
    synchronised_a_turn: float | None = None


class Tally(TorchDispatchMode):
    """A context manager that counts dispatched operations."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operation and run it."""
        name = func._schema.name
        if not func.is_view and name not in _NO_WORK:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def found(self) -> Operations:
        """The counts."""
        return Operations(
            launches=self.counts.total(),
            waiting={name: n for name, n in self.counts.items() if name in WAITING},
            commonest=dict(self.counts.most_common(8)),
        )


@contextmanager
def counted_synchronisations() -> Iterator[list[object]]:
    """Collect CUDA's warnings of synchronising calls, in a list filled on exit."""
    if not torch.cuda.is_available():
        yield []
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        found: list[object] = []
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
            found += [one for one in caught if "synchronizing CUDA" in str(one.message)]


def count(work: Callable[[], object]) -> Operations:
    """Count the operations of a second run of ``work``."""
    with torch.inference_mode():
        work()
    tally = Tally()
    with torch.inference_mode(), tally:
        work()
    return tally.found
