"""Selects the device, its dtype and kernels, and limits its memory."""

import re
import resource

import torch

from voicefleet.worker.engines.cosyvoice2 import budget
from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def select(name: str) -> torch.device:
    """The device called ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        CosyVoiceInitializationError: There is no such device here.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise CosyVoiceInitializationError(
                f"device {name}: this machine has no CUDA device, or torch is built without CUDA"
            )
        index = int(re.sub(r"\D", "", name) or 0)
        if index >= torch.cuda.device_count():
            raise CosyVoiceInitializationError(
                f"device {name}: there are {torch.cuda.device_count()} CUDA devices"
            )
        return torch.device("cuda", index)
    return torch.device("cpu")


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """The dtype called ``auto``, ``fp32``, ``bf16`` or ``fp16``."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[name]


def configure(device: torch.device, dtype: torch.dtype, threads: int) -> None:
    """Make the device the current one. ``threads`` are CPU threads; 0 keeps torch's own number.

    With a 16-bit ``dtype``, TF32 is allowed for the parts that stay in fp32.

    cuDNN attention is switched off. Torch prefers it on Hopper for 16-bit inputs with a mask, but
    it builds a plan for each new shape, up to 0.4 s each, which makes warm-up long and stalls all
    turns in service; and rows whose leading keys are all masked may come out as NaN. The other
    kernels, memory-efficient attention with a mask and flash attention without, build no plans.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        rounded = dtype != torch.float32
        torch.backends.cuda.matmul.allow_tf32 = rounded
        torch.backends.cudnn.allow_tf32 = rounded
    elif threads:
        torch.set_num_threads(threads)


def limit_memory(device: torch.device, limit_mb: int) -> None:
    """Limit this process to ``limit_mb`` MiB of the device's memory; 0: no limit."""
    if not limit_mb:
        return
    size = limit_mb * budget.MIB
    if device.type == "cuda":
        share = min(1.0, size / budget.free_memory(device)[1])
        torch.cuda.set_per_process_memory_fraction(share, device)
    else:
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
