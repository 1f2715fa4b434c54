"""The speech language model in the form that vLLM loads: a directory of weights, and a class.

It is Qwen2 with the speech tokens as its vocabulary; all other input comes as embeddings, which the
engine makes. Its head has a bias, which vLLM's Qwen2 lacks.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from voicefleet.worker.engines.cosyvoice2.hyperparameters import LanguageModelSizes
from voicefleet.worker.engines.cosyvoice2.lm.language_model import CONTROL_TOKENS
from voicefleet.worker.engines.cosyvoice2.pack import weights

ARCHITECTURE = "VoicefleetSpeechLM"

_BODY = "llm.model."
_RENAMED = {
    "speech_embedding.weight": "model.embed_tokens.weight",
    "llm_decoder.weight": "lm_head.weight",
    "llm_decoder.bias": "lm_head.bias",
}


def export(
    pack: Path, directory: Path, sizes: LanguageModelSizes, dtype: torch.dtype, positions: int
) -> int:
    """Write the model of ``pack`` into ``directory``, for sequences of up to ``positions``.

    Returns:
        Bytes of weights.

    Raises:
        CosyVoiceInitializationError: ``llm.pt`` cannot be read.
        OSError: The directory cannot be written to.
    """
    _, state = weights.read(pack, "llm.pt", dtype)
    renamed = {name: tensor.to(dtype) for name, tensor in tensors(state).items()}
    save_file(renamed, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_bytes(msgspec.json.encode(configuration(sizes, positions)))
    return sum(tensor.nbytes for tensor in renamed.values())


def tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of ``llm.pt`` to Qwen2's names; leave out the text embeddings."""
    unread = ("llm_embedding.weight", f"{_BODY}model.embed_tokens.weight")
    return {
        _RENAMED.get(name, name.removeprefix(_BODY)): tensor.contiguous()
        for name, tensor in state.items()
        if name not in unread
    }


def configuration(sizes: LanguageModelSizes, positions: int) -> dict[str, Any]:
    """The contents of ``config.json``."""
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "qwen2",
        "vocab_size": sizes.speech_tokens + CONTROL_TOKENS,
        "hidden_size": sizes.width,
        "intermediate_size": sizes.mlp,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "max_position_embeddings": positions,
        "rms_norm_eps": sizes.norm_eps,
        "rope_theta": sizes.rope_theta,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "tie_word_embeddings": False,
    }


def register() -> None:
    """Register the class with vLLM. Not measured on a GPU yet."""
    # Imported here: the class derives from one of vLLM's.
    registry: Any = importlib.import_module("vllm").ModelRegistry
    layers: Any = importlib.import_module("vllm.model_executor.layers.vocab_parallel_embedding")
    qwen2: Any = importlib.import_module("vllm.model_executor.models.qwen2")
    parent: type[Any] = qwen2.Qwen2ForCausalLM

    class SpeechLM(parent):
        """Qwen2 with a bias in its head."""

        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            sizes = vllm_config.model_config.hf_config
            # Without the replaced head's prefix: vLLM wants each prefix once.
            self.lm_head = layers.ParallelLMHead(sizes.vocab_size, sizes.hidden_size, bias=True)

        def compute_logits(self, hidden_states: Tensor, *_: Any) -> Tensor | None:
            """Logits ``[n, tokens]`` of hidden states ``[n, width]``."""
            return self.logits_processor(self.lm_head, hidden_states, self.lm_head.bias)

    registry.register_model(ARCHITECTURE, SpeechLM)
