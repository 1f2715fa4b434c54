"""Checks at load that the machine has what each option needs, and names what is missing."""

import importlib
import re
from types import ModuleType

import torch

from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.family import CosyVoice2Config

VLLM = (0, 11)
"""The first version that has the V1 engine only, which upstream's documentation names."""

TENSORRT = (10, 0)
"""The first version whose strongly typed networks accept all of our dtypes."""


def check(config: CosyVoice2Config, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse options that cannot work on this machine, before anything is loaded.

    Raises:
        CosyVoiceInitializationError: An option contradicts another, or its hardware or its package
            is missing.
    """
    if config.compile:
        _check_compile(config, device)
    if config.llm_backend == "vllm":
        _check_vllm(config, device, dtype)
    if config.estimator_backend == "tensorrt":
        _check_tensorrt(config, device)


def package(option: str, name: str, least: tuple[int, ...], remedy: str) -> ModuleType:
    """Import the package ``name`` that ``option`` needs, in version ``least`` or newer.

    Raises:
        CosyVoiceInitializationError: It is missing, broken or too old.
    """
    wanted = f"{name} {'.'.join(map(str, least))} or newer"
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # OSError: one of its libraries
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        why = "is not installed" if missing else f"cannot be imported ({error})"
        raise CosyVoiceInitializationError(
            f"{option} needs {wanted}, which {why}: {remedy}"
        ) from None
    found = str(getattr(module, "__version__", ""))
    numbers = tuple(map(int, re.findall(r"\d+", found)[: len(least)]))
    if numbers < least:
        raise CosyVoiceInitializationError(
            f"{option} needs {wanted}, and {found or 'one without a version'} is installed: "
            f"{remedy}"
        )
    return module


def vllm() -> ModuleType:
    """Import it. Raises as :func:`package`."""
    return package("llm_backend: vllm", "vllm", VLLM, "pip install 'vllm>=0.11'")


def tensorrt() -> ModuleType:
    """Import it. Raises as :func:`package`."""
    remedy = "pip install 'tensorrt>=10' for this machine's CUDA"
    return package("estimator_backend: tensorrt", "tensorrt", TENSORRT, remedy)


def exporter() -> None:
    """Check for the packages that export a model to ONNX. Raises as :func:`package`."""
    option = "estimator_backend: tensorrt"
    package(option, "onnx", (1, 17), "pip install 'onnx>=1.17'")
    package(option, "onnxscript", (0, 5), "pip install 'onnxscript>=0.5'")


def _check_compile(config: CosyVoice2Config, device: torch.device) -> None:
    # Only with graphs are shapes rounded up to a few sizes. Without, each new shape would be
    # compiled in service, for tens of seconds.
    if device.type != "cuda":
        raise CosyVoiceInitializationError(
            f"compile: what is compiled are the fixed shapes of CUDA graphs, and device is {device}"
        )
    if config.cuda_graphs == "off":
        raise CosyVoiceInitializationError(
            "compile: what is compiled are the fixed shapes of CUDA graphs, and cuda_graphs is off"
        )


def _check_vllm(config: CosyVoice2Config, device: torch.device, dtype: torch.dtype) -> None:
    option = "llm_backend: vllm"
    if config.upstream_exact:
        raise CosyVoiceInitializationError(f"{option} samples otherwise: no upstream_exact with it")
    if config.text_streaming:
        raise CosyVoiceInitializationError(
            f"{option} reads a text as a whole: no text_streaming with it"
        )
    _check_cuda(option, device)
    if device.index:
        raise CosyVoiceInitializationError(
            f"{option} uses the first GPU that it sees, not {device}: choose it with "
            "CUDA_VISIBLE_DEVICES and set device: cuda"
        )
    if dtype == torch.float32:
        raise CosyVoiceInitializationError(f"{option} needs dtype bf16 or fp16, not fp32")
    vllm()


def _check_tensorrt(config: CosyVoice2Config, device: torch.device) -> None:
    option = "estimator_backend: tensorrt"
    if config.upstream_exact:
        raise CosyVoiceInitializationError(f"{option} rounds otherwise: no upstream_exact with it")
    _check_cuda(option, device)
    tensorrt()
    exporter()


def _check_cuda(option: str, device: torch.device) -> None:
    if device.type != "cuda":
        raise CosyVoiceInitializationError(f"{option} needs a CUDA device, and device is {device}")
