"""What a device did in a piece of work: kernels, copies and fills, by torch's profiler."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

_ON_DEVICE: Final = ("kernel", "gpu_memcpy", "gpu_memset")


class DeviceEvent(NamedTuple):
    """One kernel, copy or fill, and how long it ran in microseconds."""

    name: str
    us: float


def device_events(work: Callable[[], object]) -> list[DeviceEvent]:
    """Run ``work`` once; in the order in which the device ran them. Needs CUDA.

    The nodes of a replayed graph are among them, each by itself.
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
