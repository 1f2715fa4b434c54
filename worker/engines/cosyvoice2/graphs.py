"""CUDA graphs: hundreds of kernels are launched at once instead of one by one."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

import torch

T = TypeVar("T")

WARM_UP_RUNS = 2
"""Runs before a capture: in the first ones libraries choose kernels and allocate workspaces."""


class Graphs:
    """Captures functions of static tensors, one graph for each key, and replays them.

    A captured function reads its inputs from tensors that stay at one address, returns tensors that
    the next replay overwrites, and does not branch on tensor values. If not ``enabled`` (there is
    no CUDA device, or graphs are switched off), functions are simply called.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self._kept: dict[Hashable, Callable[[], Any]] = {}
        # All graphs share one memory pool: they are replayed one after another, never concurrently.
        self._pool = torch.cuda.graph_pool_handle() if enabled else None

    def run(self, key: Hashable, work: Callable[[], T]) -> T:
        """Run ``work`` from its graph, or directly if graphs are disabled.

        ``prepare`` must have captured the graph before the inputs were written: capturing runs
        ``work``, which would change them.

        Args:
            key: Identifies ``work`` and its shapes.
            work: A function of static tensors.
        """
        if key not in self._kept:
            assert not self.enabled, f"{key}: capturing it now would change its inputs"
            self._kept[key] = self._make(work, _no_op)
        return cast(T, self._kept[key]())

    def has(self, key: Hashable) -> bool:
        """Whether ``key`` can be run without a capture."""
        return not self.enabled or key in self._kept

    def prepare(self, key: Hashable, work: Callable[[], T], make_idle: Callable[[], None]) -> None:
        """Capture ``work`` unless it has been captured.

        Args:
            key: Identifies ``work`` and its shapes.
            work: A function of static tensors.
            make_idle: Called first; sets the inputs so that running ``work`` affects no sequence.
        """
        if key not in self._kept:
            self._kept[key] = self._make(work, make_idle)

    def clear(self) -> None:
        """Drop all graphs and free their memory."""
        self._kept.clear()

    @property
    def count(self) -> int:
        """How many functions have been captured."""
        return len(self._kept)

    def _make(self, work: Callable[[], T], make_idle: Callable[[], None]) -> Callable[[], T]:
        if not self.enabled:
            return work
        make_idle()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_RUNS):
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = work()

        def replay() -> T:
            graph.replay()
            return result

        return replay


def _no_op() -> None:
    """No inputs need protection where nothing is captured."""
