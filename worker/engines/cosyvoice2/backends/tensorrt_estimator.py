"""The flow's estimator on TensorRT, as upstream's ``load_trt`` has it.

Not measured on a GPU yet. It differs from the native estimator:

* It takes whole utterances: no block is cached (``recomputing``), each is computed together with
  all before it.
* It takes them one by one, so that no utterance's samples depend on its batch.
* TensorRT chooses kernels by timing them on the machine that builds the engine: two workers that
  built their own may round differently.

The first load builds the TensorRT engine, which takes minutes (``load_timeout_s`` has to allow
them), and keeps it beside the weights in ``.tensorrt``. It is valid for one GPU model and one
TensorRT version.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor, nn

from voicefleet.worker.engines.cosyvoice2.backends import estimator_onnx, requirements
from voicefleet.worker.engines.cosyvoice2.errors import (
    CosyVoiceInitializationError,
    CosyVoiceSynthesisError,
)
from voicefleet.worker.engines.cosyvoice2.flow.context import (
    ConvContext,
    EmptyContext,
    LayerContext,
)
from voicefleet.worker.engines.cosyvoice2.flow.estimator import GUIDANCE_ROWS, Estimator

log = structlog.get_logger()

LEAST_FRAMES, USUAL_FRAMES = 2, 500

FOLDER = ".tensorrt"

LAYOUT = 1
"""The version of the exported graph. A change makes built engines stale."""


def current_stream() -> int:
    """The handle of torch's current CUDA stream."""
    return torch.cuda.current_stream().cuda_stream


class TensorrtEstimator(nn.Module):
    """A ``StepEstimator`` that runs a TensorRT engine on the current stream.

    Args:
        native: Computes the constants; its layers may have been deleted.
        context: A ``tensorrt.IExecutionContext``.
        frames: The most frames that the TensorRT engine takes.
        stream: Returns the handle of the CUDA stream to run on.
    """

    def __init__(
        self,
        native: Estimator,
        context: Any,
        frames: int,
        stream: Callable[[], int] = current_stream,
    ) -> None:
        super().__init__()
        self._stream = stream
        self._native = native
        self._context = context
        self._frames = frames
        self._steps = torch.arange(native.steps, device=native.entry_bias.device)

    def constants(
        self, mu: Tensor, speaker: Tensor, prompt: Tensor, context: ConvContext
    ) -> Tensor:
        """As ``Estimator.constants``; computed natively, once for all steps."""
        return self._native.constants(mu, speaker, prompt, context)

    def forward(
        self, x: Tensor, constants: Tensor, step: int, inputs: ConvContext, context: LayerContext
    ) -> Tensor:
        """As ``Estimator.forward``, for one whole utterance: ``[1, 2, t, bands]``.

        Raises:
            CosyVoiceSynthesisError: There are several utterances, cached ones, or one too long.
        """
        size = x.shape[1]
        if (
            len(x) != 1
            or not isinstance(inputs, EmptyContext)
            or not isinstance(context, EmptyContext)
        ):
            raise CosyVoiceSynthesisError("TensorRT renders whole utterances, one by one")
        if size > self._frames:
            raise CosyVoiceSynthesisError(f"{size} frames, of which TensorRT takes {self._frames}")
        mask = context.mask.expand(GUIDANCE_ROWS, 1, size, size)
        velocity = torch.empty(
            1, GUIDANCE_ROWS, size, x.shape[2], dtype=constants.dtype, device=x.device
        )
        self._run((x, constants, self._steps[step : step + 1], mask), velocity)
        return velocity

    def _run(self, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # Kept alive until the call is enqueued; later users of their memory follow in the stream.
        given = [tensor.contiguous() for tensor in inputs]
        for name, tensor in zip(estimator_onnx.INPUTS, given, strict=True):
            self._context.set_input_shape(name, tuple(tensor.shape))
            self._context.set_tensor_address(name, tensor.data_ptr())
        self._context.set_tensor_address(estimator_onnx.OUTPUT, output.data_ptr())
        if not self._context.execute_async_v3(self._stream()):
            raise CosyVoiceSynthesisError("TensorRT did not run the estimator")


def build(pack: Path, native: Estimator, frames: int) -> TensorrtEstimator:
    """Load or build the estimator for up to ``frames`` frames; delete the native layers.

    Raises:
        CosyVoiceInitializationError: The engine cannot be built, kept or loaded.
    """
    trt: Any = requirements.tensorrt()
    logger = trt.Logger(trt.Logger.WARNING)
    gpu = torch.cuda.get_device_name(native.entry_bias.device)
    path = pack / FOLDER / f"estimator-{key(native, frames, gpu, trt.__version__)}.engine"
    log.info("estimator_on_tensorrt", engine=path.name, build=not path.is_file(), flow_cache=False)
    if not path.is_file():
        _keep(path, _built(trt, logger, native, frames))
    engine = trt.Runtime(logger).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise CosyVoiceInitializationError(f"{path}: TensorRT cannot load it: remove it")
    context = engine.create_execution_context()
    if context is None:
        raise CosyVoiceInitializationError(
            "estimator_backend: tensorrt has no memory for the longest utterance"
        )
    del native.down_blocks, native.mid_blocks, native.up_blocks, native.final_block
    return TensorrtEstimator(native, context, frames)


def key(native: Estimator, frames: int, gpu: str, version: str) -> str:
    """A key of 16 hexadecimal digits for the arguments and the weights."""
    digest = hashlib.sha256(f"{LAYOUT} {gpu} {version} {frames}".encode())
    tensors = {**dict(native.named_parameters()), **dict(native.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # Hashed as bytes: NumPy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _built(trt: Any, logger: Any, native: Estimator, frames: int) -> bytes:
    """Build the TensorRT engine of the exported graph, for 2 to ``frames`` frames."""
    builder = trt.Builder(logger)
    # Strongly typed: each tensor keeps its dtype of torch.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    try:
        graph = estimator_onnx.export(native)
    except Exception as error:
        raise CosyVoiceInitializationError(
            f"estimator_backend: tensorrt: torch {torch.__version__} cannot export the estimator: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not parser.parse(graph):
        problems = "; ".join(str(parser.get_error(n)) for n in range(parser.num_errors))
        raise CosyVoiceInitializationError(
            f"TensorRT {trt.__version__} cannot read the estimator: {problems}"
        )
    options = builder.create_builder_config()
    # TF32 is on by default; fp32 must mean fp32.
    options.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    usual = min(USUAL_FRAMES, frames)
    sizes = [estimator_onnx.shapes(native, n) for n in (LEAST_FRAMES, usual, frames)]
    for name, *shapes in zip(estimator_onnx.INPUTS, *sizes, strict=True):
        profile.set_shape(name, *shapes)
    options.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, options)
    if engine is None:
        raise CosyVoiceInitializationError(
            f"TensorRT {trt.__version__} cannot build the estimator: its log says why"
        )
    return bytes(engine)


def _keep(path: Path, engine: bytes) -> None:
    """Write the engine file atomically."""
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(exist_ok=True)
        partial.write_bytes(engine)
        partial.replace(path)
    except OSError as error:
        raise CosyVoiceInitializationError(
            f"{path}: {error.strerror}: TensorRT's engine is kept beside the weights"
        ) from None
