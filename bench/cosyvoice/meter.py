"""Measures where an engine's time goes, by wrapping its parts' methods."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final

import msgspec
import torch

from voicefleet.worker.engines.cosyvoice2.rendering import BlockStage
from voicefleet.worker.engines.cosyvoice2.transfer import Transfer

STAGES: Final = ("prefill", "decode", "flow", "recompute", "vocoder", "wait")
"""``wait`` is waiting for the device. The remaining time of a step is ``host``."""


class Stage(msgspec.Struct):
    """One kind of work. ``rows`` sums up the sequences of all runs.

    ``seconds`` is the host's time, with a GPU only that to start the work. ``device_s`` is the
    device's time between two events, if it is measured. ``units`` are decode steps.
    """

    runs: int = 0
    rows: int = 0
    units: int = 0
    seconds: float = 0.0
    device_s: float = 0.0

    @property
    def mean_rows(self) -> float:
        """The mean number of sequences in a run."""
        return self.rows / self.runs if self.runs else 0.0


class Meter:
    """Counts runs, sequences and time by stage."""

    def __init__(self, *, device_times: bool) -> None:
        self._device_times = device_times and torch.cuda.is_available()
        self._events: list[tuple[Stage, Any, Any]] = []
        self.stages: defaultdict[str, Stage] = defaultdict(Stage)

    def reset(self) -> None:
        """Set all counts to zero."""
        self._events.clear()
        self.stages.clear()

    def read(self) -> dict[str, Stage]:
        """The counts; ``host`` is the remaining time of ``step``."""
        if self._events:
            torch.cuda.synchronize()
        for stage, begun, ended in self._events:
            stage.device_s += begun.elapsed_time(ended) / 1000
        self._events.clear()
        parts = sum(self.stages[name].seconds for name in STAGES)
        step = self.stages["step"]
        self.stages["host"] = Stage(runs=step.runs, seconds=max(0.0, step.seconds - parts))
        return dict(self.stages)

    def wrap(self, owner: Any, method: str, name: str, rows: "Count", units: "Count") -> None:
        """Count and time every call of a method."""
        inner = getattr(owner, method)

        def outer(*args: Any, **kwargs: Any) -> Any:
            stage = self.stages[name]
            stage.runs += 1
            stage.rows += rows(*args)
            stage.units += units(*args)
            event = self._event()
            begun = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                stage.seconds += time.perf_counter() - begun
                if event is not None:
                    self._events.append((stage, event, self._event()))

        setattr(owner, method, outer)

    def _event(self) -> Any:
        if not self._device_times:
            return None
        event: Any = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


Count = Callable[..., int]

_WAITS: list[Meter] = []
"""The last meter counts waits: one engine is measured at a time."""


def _none(*_: Any) -> int:
    return 0


def _one(*_: Any) -> int:
    return 1


def _first(*args: Any) -> int:
    return len(args[0])


def watch(core: Any, *, device_times: bool = False) -> Meter:
    """Wrap a loaded ``CosyVoice2Core``'s parts."""
    meter = Meter(device_times=device_times)
    meter.wrap(core, "step", "step", _none, _none)
    loaded: Any = core._runner
    audio = loaded.audio
    meter.wrap(loaded.decoder, "prefill", "prefill", _one, lambda _, embeddings: len(embeddings))
    meter.wrap(loaded.decoder, "multi_step", "decode", _first, lambda _, steps: steps)
    if isinstance(audio, BlockStage):
        renderer: Any = audio._renderer
        meter.wrap(renderer, "render", "flow", _first, _first)
        meter.wrap(renderer, "recompute", "recompute", _first, _first)
        meter.wrap(audio._vocoder, "render", "vocoder", _first, _none)
    if not hasattr(Transfer.wait, "metered"):
        inner = Transfer.wait

        def wait(transfer: Transfer) -> torch.Tensor:
            meter = _WAITS[-1]
            stage = meter.stages["wait"]
            begun = time.perf_counter()
            tensor = inner(transfer)
            stage.seconds += time.perf_counter() - begun
            stage.runs += 1
            return tensor

        wait.metered = True
        Transfer.wait = wait
    _WAITS.append(meter)
    return meter
