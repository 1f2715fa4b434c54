"""Records the kernels, copies and fills that a device runs, with torch's profiler."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

_ON_DEVICE: Final = ("kernel", "gpu_memcpy", "gpu_memset")


class DeviceEvent(NamedTuple):
    """One kernel, copy or fill, and its duration in microseconds."""

    name: str
    us: float


def device_events(work: Callable[[], object]) -> list[DeviceEvent]:
    """Run ``work`` once; return its events in the device's order. Needs CUDA.

    Each node of a replayed graph is an event.
    """
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        work()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trace.json"
        profiled.export_chrome_trace(str(path))
        events: list[dict[str, Any]] = json.loads(path.read_bytes())["traceEvents"]
    found = [one for one in events if one.get("cat") in _ON_DEVICE]
    found.sort(key=lambda one: one["ts"])
    return [DeviceEvent(one["name"], float(one.get("dur", 0.0))) for one in found]
