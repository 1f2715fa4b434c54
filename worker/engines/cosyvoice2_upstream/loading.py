"""Loads a voicepack with upstream's loader, and patches upstream's defects."""

import contextlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.family import CosyVoice2Config
from voicefleet.worker.engines.cosyvoice2.voices.speaker import Conditioning
from voicefleet.worker.engines.cosyvoice2.voices.voice import Voice
from voicefleet.worker.engines.cosyvoice2_upstream import patches
from voicefleet.worker.engines.cosyvoice2_upstream.package import import_model_class, stub_modules
from voicefleet.worker.engines.cosyvoice2_upstream.request import (
    UtteranceRequest,
    current,
    working_on,
)
from voicefleet.worker.engines.protocol import Samples
from voicefleet.worker.voicepacks.voicepack import Voicepack

Timed = Callable[[str], AbstractContextManager[None]]


class Upstream:
    """Upstream's model. Any number of threads may each speak one utterance at a time.

    ``patched`` names the defects that were patched; ``rate`` is in Hz.
    """

    def __init__(self, cosyvoice: Any, patched: tuple[str, ...]) -> None:
        self.model = cosyvoice.model
        self.rate: int = cosyvoice.sample_rate
        self.device = torch.device(self.model.device)
        self.patched = patched

    def speak(
        self,
        request: UtteranceRequest,
        text: list[int],
        conditioning: Conditioning,
        voice: Voice,
        speed: float = 1.0,
    ) -> Iterator[Samples]:
        """Yield upstream's chunks of one utterance, float32 ``[n]``.

        Args:
            request: The utterance's seed and length, and the means to cancel it.
            text: Text tokens.
            conditioning: The language model's prompt.
            voice: The voice.
            speed: Other speeds than 1 give one chunk: upstream cannot stream them.

        Raises:
            CancelledError: Soon after ``request`` was cancelled.
        """
        inputs = model_inputs(text, conditioning, voice)
        chunks = self.model.tts(**inputs, stream=speed == 1.0, speed=speed)
        try:
            # tts is a generator: it runs in this thread, while the next chunk is computed.
            while True:
                request.check()
                with working_on(request):
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                yield chunk["tts_speech"].squeeze(0).float().numpy()
        finally:
            request.cancel()
            chunks.close()
            if request.thread is not None:
                request.thread.join()
            if request.key is not None:
                patches.forget(self.model, request.key)


def model_inputs(
    text: list[int], conditioning: Conditioning, voice: Voice
) -> dict[str, torch.Tensor]:
    """The inputs that upstream's ``frontend_zero_shot`` and the other modes' frontends make.

    Tokens are int32 ``[1, n]``, the mel f32 ``[1, frames, bands]``, embeddings f32 ``[1, 192]``.
    """

    def tokens(ids: list[int] | NDArray[np.int64]) -> torch.Tensor:
        return torch.as_tensor(ids, dtype=torch.int32).reshape(1, -1)

    speaker = torch.from_numpy(voice.speaker)[None]
    return {
        "text": tokens(text),
        "prompt_text": tokens(conditioning.text),
        "llm_prompt_speech_token": tokens(conditioning.speech),
        "flow_prompt_speech_token": tokens(voice.flow_tokens),
        "prompt_speech_feat": torch.from_numpy(voice.mel)[None],
        "llm_embedding": speaker,
        "flow_embedding": speaker,
    }


def load(pack: Voicepack, config: CosyVoice2Config, timed: Timed) -> Upstream:
    """Load a pack with upstream's loader.

    Raises:
        CosyVoiceInitializationError: The package or something that an option needs is missing, or
            upstream cannot load the model.
    """
    with timed("package"):
        model_class = import_model_class()
    options = _options(model_class, config, pack.directory)
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.load_vllm:
        _register_with_vllm()
    with timed("weights"):
        try:
            # Upstream prints to stdout.
            with stub_modules(), _read_in_fp32(), contextlib.redirect_stdout(sys.stderr):
                cosyvoice = model_class(str(pack.directory), **options)
        except Exception as error:
            raise CosyVoiceInitializationError(
                f"{pack.model_id}: upstream cannot load it: {type(error).__name__}: {error}"
            ) from error
    with timed("patches"):
        patched = patches.apply_all(cosyvoice.model)
        _set_lengths(cosyvoice.model)
    return Upstream(cosyvoice, ("training-imports", "transformers-dtype", *patched))


def _options(model_class: type[Any], config: CosyVoice2Config, model: Path) -> dict[str, Any]:
    """The arguments of upstream's class. Options that it would silently ignore are refused."""
    _check_device(config.device)
    if config.dtype == "bf16":
        raise CosyVoiceInitializationError("dtype: upstream knows fp32 and fp16, not bf16")
    asked = {
        "load_jit": config.load_jit,
        "load_trt": config.load_trt,
        "load_vllm": config.load_vllm,
        "fp16": config.dtype == "fp16",
    }
    options = {name: True for name, value in asked.items() if value}
    known = inspect.signature(model_class).parameters
    for name in options:
        if name not in known:
            raise CosyVoiceInitializationError(f"{name}: this upstream package does not know it")
        if not torch.cuda.is_available():
            raise CosyVoiceInitializationError(f"{name}: upstream needs a CUDA device for it")
    if config.load_trt:
        _need_package("load_trt", "tensorrt")
    if config.load_vllm:
        _need_package("load_vllm", "vllm")
    precision = "fp16" if config.dtype == "fp16" else "fp32"
    if config.load_jit:
        _need_file("load_jit", model / f"flow.encoder.{precision}.zip")
    if config.load_trt and not (model / f"flow.decoder.estimator.{precision}.mygpu.plan").exists():
        _need_file("load_trt", model / "flow.decoder.estimator.fp32.onnx")
    # Without this argument PyPI's cosyvoice2-eu looks for llm-original.pt and the like.
    return options | ({"final": True} if "final" in known else {})


def _check_device(name: str) -> None:
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise CosyVoiceInitializationError(
            f"device {name}: this machine has no CUDA device, or torch is built without CUDA"
        )
    if (name == "cpu" and torch.cuda.is_available()) or name not in (
        "auto",
        "cpu",
        "cuda",
        "cuda:0",
    ):
        raise CosyVoiceInitializationError(
            f"device {name}: upstream takes the first GPU that it sees; choose which with "
            "CUDA_VISIBLE_DEVICES"
        )


def _need_package(option: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise CosyVoiceInitializationError(f"{option} needs {package}, which is not installed")


def _need_file(option: str, path: Path) -> None:
    if not path.is_file():
        raise CosyVoiceInitializationError(f"{option} needs {path}, which is not there")


def _register_with_vllm() -> None:
    """Register upstream's model with vLLM, which upstream leaves to its caller."""
    try:
        vllm: Any = importlib.import_module("vllm")
        theirs: Any = importlib.import_module("cosyvoice.vllm.cosyvoice2")
        vllm.ModelRegistry.register_model("CosyVoice2ForCausalLM", theirs.CosyVoice2ForCausalLM)
    except Exception as error:
        raise CosyVoiceInitializationError(
            f"load_vllm: upstream's model does not fit the installed vllm: {error}"
        ) from error


@contextlib.contextmanager
def _read_in_fp32() -> Generator[None]:
    """Make transformers build the module in fp32.

    transformers 5 uses the dtype of the file, which is 16 bit here; transformers 4 used fp32, on
    which upstream relies when it loads ``llm.pt`` into the module.
    """
    module: Any = importlib.import_module("cosyvoice.llm.llm")
    theirs = module.Qwen2ForCausalLM

    class InFp32:
        @staticmethod
        def from_pretrained(*args: Any, **kwargs: Any) -> Any:
            return theirs.from_pretrained(*args, **kwargs).float()

    module.Qwen2ForCausalLM = InFp32
    try:
        yield
    finally:
        module.Qwen2ForCausalLM = theirs


def _set_lengths(model: Any) -> None:
    """Make utterances as long as their request says, if it does.

    Upstream bounds the number of speech tokens by ratios to text tokens; equal ratios fix it.
    """
    inference = model.llm.inference

    def bounded(*args: Any, **kwargs: Any) -> Any:
        request = current()
        if request is not None and request.length is not None:
            # Half a token more, because upstream rounds down.
            ratio = (request.length + 0.5) / max(1, int(kwargs["text_len"]))
            kwargs |= {"min_token_text_ratio": ratio, "max_token_text_ratio": ratio}
        return inference(*args, **kwargs)

    model.llm.inference = bounded
