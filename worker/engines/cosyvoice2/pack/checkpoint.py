"""Loads a checkpoint directory, as published, into modules that are ready to run."""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks

from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.flow.model import Flow
from voicefleet.worker.engines.cosyvoice2.hyperparameters import Hyperparameters
from voicefleet.worker.engines.cosyvoice2.lm.language_model import LanguageModel
from voicefleet.worker.engines.cosyvoice2.pack import layout, weights
from voicefleet.worker.engines.cosyvoice2.vocoder.model import Vocoder

M = TypeVar("M", bound=nn.Module)

MOST_NAMED: Final = 20
"""An error names at most this many tensors, and counts the others."""


class Model(NamedTuple):
    """The model's three parts, on their device, for inference only."""

    language_model: LanguageModel
    flow: Flow
    vocoder: Vocoder


def load(
    directory: Path, hyperparameters: Hyperparameters, dtype: torch.dtype, device: torch.device
) -> Model:
    """Load the weights of ``directory``.

    The language model and the flow get ``dtype``, the vocoder float32. A safetensors copy is read
    instead of a ``.pt`` file if it has the same precision.

    Raises:
        CosyVoiceInitializationError: A file is missing, damaged, would run code, holds NaN or
            infinity, or is of another architecture. The message names every tensor that is
            missing, unknown or of another shape, in all three files.
    """
    model = skeleton(hyperparameters)
    parts = (
        (layout.LANGUAGE_MODEL, model.language_model, dtype),
        (layout.FLOW, model.flow, dtype),
        (layout.VOCODER, model.vocoder, torch.float32),
    )
    problems: list[str] = []
    found: dict[str, tuple[Path, dict[str, Tensor]]] = {}
    for name, module, kind in parts:
        try:
            found[name] = weights.read(directory, name, kind)
            problems += differences(module, found[name][1], found[name][0])
        except CosyVoiceInitializationError as error:
            problems.append(str(error))
    if problems:
        raise CosyVoiceInitializationError(_elided(problems))
    for name, module, kind in parts:
        path, state = found.pop(name)
        assign(module, state, path, kind, device)
        finish(module, path, device)
    return model


def skeleton(hyperparameters: Hyperparameters) -> Model:
    """The modules without weights: their parameters are on the ``meta`` device."""
    with parameters_on_meta():
        return Model(
            LanguageModel(hyperparameters.language_model),
            Flow(hyperparameters.flow),
            Vocoder(hyperparameters.vocoder),
        )


@contextmanager
def parameters_on_meta() -> Generator[None]:
    """Modules built in this context get parameters without memory or values.

    Unlike under ``torch.device("meta")``, buffers are real: those that are not in a checkpoint
    (tables, windows, fixed noise) are computed when the module is built.
    """

    def empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        return None if parameter is None else nn.Parameter(parameter.to("meta"), False)

    handle = module_hooks.register_module_parameter_registration_hook(empty)  # pyright: ignore
    try:
        yield
    finally:
        handle.remove()


def differences(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> list[str]:
    """How the tensors of ``path`` differ from those that ``module`` needs; empty if they fit."""
    needed = {name: tensor.shape for name, tensor in module.state_dict().items()}
    found = {name: tensor.shape for name, tensor in state.items()}
    problems = [
        f"{path}: {name} is missing: {_shape(shape)} is needed"
        for name, shape in needed.items()
        if name not in found
    ]
    problems += [
        f"{path}: {name} {_shape(shape)} is not part of this architecture"
        for name, shape in found.items()
        if name not in needed
    ]
    problems += [
        f"{path}: {name} is {_shape(found[name])}, {_shape(shape)} is needed"
        for name, shape in needed.items()
        if name in found and found[name] != shape
    ]
    problems += [
        f"{path}: {name} holds {tensor.dtype}, which are no weights"
        for name, tensor in state.items()
        if name in needed and not tensor.is_floating_point()
    ]
    return problems


def assign(
    module: nn.Module,
    state: Mapping[str, Tensor],
    path: Path,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Give ``module`` copies of the tensors of ``state`` in ``dtype`` on ``device``.

    Raises:
        CosyVoiceInitializationError: A tensor differs in name or shape, or is not finite once
            converted to ``dtype``.
    """
    if problems := differences(module, state, path):
        raise CosyVoiceInitializationError(_elided(problems))
    # Always copy: a memory-mapped file may be truncated while it is in use, and its tensors are at
    # unaligned addresses, where some kernels round otherwise.
    placed = {
        name: tensor.to(device).to(dtype, copy=tensor.device == device)
        for name, tensor in state.items()
    }
    problems = [f"{path}: {name} holds NaN or infinity in {dtype}" for name in _not_finite(placed)]
    if problems:
        raise CosyVoiceInitializationError(_elided(problems))
    module.load_state_dict(placed, assign=True)


def finish(module: nn.Module, path: Path, device: torch.device) -> None:
    """Prepare a module with weights for inference.

    Raises:
        CosyVoiceInitializationError: A parameter or buffer has no values.
    """
    module.requires_grad_(False).to(device)
    optimise: Callable[[], None] | None = getattr(module, "optimise", None)
    if optimise is not None:
        optimise()
    module.eval().requires_grad_(False)  # fused parameters too
    tensors = (*module.named_parameters(), *module.named_buffers())
    if empty := [name for name, tensor in tensors if tensor.is_meta]:
        raise CosyVoiceInitializationError(f"{path}: {', '.join(empty[:3])} were never set")


def _not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors with NaN or infinity, with one transfer from the device."""
    if not state:
        return []
    # aminmax returns NaN if any value is NaN.
    extremes = [torch.stack(torch.aminmax(tensor)).float() for tensor in state.values()]
    finite: list[bool] = torch.isfinite(torch.stack(extremes)).all(dim=1).tolist()  # pyright: ignore
    return [name for name, good in zip(state, finite, strict=True) if not good]


def _shape(shape: Iterable[int]) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"


def _elided(problems: list[str]) -> str:
    lines = problems[:MOST_NAMED]
    if more := len(problems) - len(lines):
        lines.append(f"... and {more} more")
    return "\n".join(lines)
