"""CUDA graphs: hundreds of kernels started at once instead of one by one."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

import torch

T = TypeVar("T")

WARM_UP_RUNS = 2
"""Runs before a capture: libraries pick kernels and allocate workspaces in the first."""


class Graphs:
    """Captures functions of static tensors, one graph for each key, and replays them.

    A captured function reads its inputs from tensors that never move, returns tensors that its next
    replay overwrites, and decides nothing from what the tensors hold. Without CUDA, or switched
    off, it is simply called.

    Args:
        enabled: Whether to capture at all.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self._kept: dict[Hashable, Callable[[], Any]] = {}
        # One pool for all: they replay one after another, never side by side.
        self._pool = torch.cuda.graph_pool_handle() if enabled else None

    def run(self, key: Hashable, work: Callable[[], T]) -> T:
        """Run ``work``, from its graph where there are graphs.

        Those are made by ``prepare``, before the inputs are: the runs of a capture are real, and
        would disturb what stands in them.

        Args:
            key: What stands for ``work`` and its shapes.
            work: A function of static tensors.
        """
        if key not in self._kept:
            assert not self.enabled, f"{key}: a capture in run would disturb its inputs"
            self._kept[key] = self._make(work, _nothing)
        return cast(T, self._kept[key]())

    def has(self, key: Hashable) -> bool:
        """Whether ``key`` is ready to run as it stands."""
        return not self.enabled or key in self._kept

    def prepare(self, key: Hashable, work: Callable[[], T], make_idle: Callable[[], None]) -> None:
        """Capture ``work`` now, unless that was done.

        Args:
            key: What stands for ``work`` and its shapes.
            work: A function of static tensors.
            make_idle: Called before: it must leave the inputs such that running ``work`` changes
                nothing that matters.
        """
        if key not in self._kept:
            self._kept[key] = self._make(work, make_idle)

    def clear(self) -> None:
        """Forget all graphs, and give their memory back."""
        self._kept.clear()

    @property
    def count(self) -> int:
        """Functions captured."""
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


def _nothing() -> None:
    """There is nothing to leave alone where nothing is captured."""
