"""CUDA graphs without CUDA, and a census of what runs outside of them.

``Captured`` does on the CPU what capturing does on a GPU: it runs the work for real before it is
wanted, replays the operations that were recorded then and nothing else, and lets each replay
overwrite what others returned.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from voicefleet.worker.engines.cosyvoice2 import graphs
from voicefleet.worker.engines.cosyvoice2.graphs import Graphs


class Captured(Graphs):
    """Graphs as CUDA has them, without CUDA.

    ``recorded``: what is replayed is a recording of the operations, with the shapes, the choices
    and the very tensors of the time of the capture. It takes seconds for each; without, the
    function itself is called again. ``keys`` are what was captured, in order; ``inside`` says
    whether an operation that runs just now is a graph's.
    """

    def __init__(self, recorded: bool = True) -> None:
        super().__init__(enabled=False)
        self.enabled = True
        self.keys: list[Hashable] = []
        self.inside = False
        self._recorded = recorded
        self._static: list[Any] = []

    def prepare(
        self, key: Hashable, work: Callable[[], Any], make_idle: Callable[[], None]
    ) -> None:
        if key not in self._kept:
            self.keys.append(key)
        super().prepare(key, work, make_idle)

    def run(self, key: Hashable, work: Callable[[], Any]) -> Any:
        assert key in self._kept, f"{key}: a capture in run would disturb what stands in its inputs"
        return super().run(key, work)

    def _make(self, work: Callable[[], Any], make_idle: Callable[[], None]) -> Callable[[], Any]:
        make_idle()
        with self._within():
            for _ in range(graphs.WARM_UP_RUNS):
                work()
            recording = make_fx(work)() if self._recorded else work
            result = _tensors(work())
        static = [tensor.clone() for tensor in result]
        self._static.append(static)

        def replay() -> Any:
            with self._within():
                fresh = _tensors(recording())
            for others in self._static:
                for tensor in others:
                    tensor.fill_(float("nan"))
            for tensor, value in zip(static, fresh, strict=True):
                tensor.copy_(value)
            return tuple(static) if len(static) > 1 else next(iter(static), None)

        return replay

    @contextmanager
    def _within(self) -> Iterator[None]:
        self.inside = True
        try:
            yield
        finally:
            self.inside = False


def _tensors(result: Any) -> list[Any]:
    if result is None:
        return []
    return list(result) if isinstance(result, tuple | list) else [result]


ATTENTION, CONVOLUTION, PRODUCT = "attention", "convolution", "product"

_KINDS = {
    "scaled_dot_product_attention": ATTENTION,
    "_scaled_dot_product_flash_attention_for_cpu": ATTENTION,
    "_scaled_dot_product_attention_math": ATTENTION,
    "convolution": CONVOLUTION,
    "conv1d": CONVOLUTION,
    "conv_transpose1d": CONVOLUTION,
    "linear": PRODUCT,
    "matmul": PRODUCT,
    "mm": PRODUCT,
    "addmm": PRODUCT,
    "bmm": PRODUCT,
    "baddbmm": PRODUCT,
}
"""For these a GPU's libraries pick a kernel, or make a plan, at the first sight of a shape."""


class Census(TorchDispatchMode):
    """Counts (kind, shapes and strides) of such operations that run outside of any graph."""

    def __init__(self, captured: Captured) -> None:
        super().__init__()
        self._captured = captured
        self.eager: dict[tuple[str, Any], int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = _KINDS.get(func._schema.name.removeprefix("aten::"))
        if kind is not None and not self._captured.inside:
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)]
            key = kind, tuple((tuple(t.shape), t.stride(), t.dtype) for t in tensors)
            self.eager[key] = self.eager.get(key, 0) + 1
        return func(*args, **(kwargs or {}))
