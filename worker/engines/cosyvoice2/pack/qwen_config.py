"""Reads the sizes of the language model's transformer from ``CosyVoice-BlankEN/config.json``."""

from pathlib import Path
from typing import Any

import msgspec

from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.hyperparameters import LanguageModelSizes


class _Qwen(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of Qwen2's ``config.json`` that are used."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    rope_theta: float | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    hidden_act: str = "silu"
    model_type: str = "qwen2"
    use_sliding_window: bool = False


def read(path: Path) -> LanguageModelSizes:
    """Read the transformer's sizes; the speech head's keep their defaults.

    Newer files nest ``rope_theta`` under ``rope_parameters``.

    Raises:
        CosyVoiceInitializationError: The file is missing, or describes another architecture.
    """
    try:
        config = msgspec.json.decode(path.read_bytes(), type=_Qwen)
    except OSError as error:
        raise CosyVoiceInitializationError(f"{path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CosyVoiceInitializationError(f"{path}: {error}") from None
    rope = {**(config.rope_scaling or {}), **(config.rope_parameters or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = rope.get("rope_theta", config.rope_theta)
    heads = max(1, config.num_attention_heads)
    refused = [
        f"{key} is {value!r}, but this engine implements only {supported!r}"
        for key, value, supported in (
            ("model_type", config.model_type, "qwen2"),
            ("hidden_act", config.hidden_act, "silu"),
            ("use_sliding_window", config.use_sliding_window, False),
            ("rope_type", kind, "default"),
            (
                "head_dim",
                config.head_dim or config.hidden_size // heads,
                config.hidden_size // heads,
            ),
        )
        if value != supported
    ]
    try:
        sizes = LanguageModelSizes(
            vocabulary=config.vocab_size,
            width=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads or heads,
            mlp=config.intermediate_size,
            norm_eps=config.rms_norm_eps,
            rope_theta=10_000.0 if theta is None else float(theta),
        )
        msgspec.convert(msgspec.to_builtins(sizes), LanguageModelSizes)
    except (msgspec.ValidationError, TypeError, ValueError, OverflowError) as error:
        refused.append(str(error))
        sizes = LanguageModelSizes()
    if sizes.width % sizes.heads or sizes.heads % sizes.kv_heads:
        refused.append("hidden_size, num_attention_heads and num_key_value_heads do not divide")
    if refused:
        raise CosyVoiceInitializationError("\n".join(f"{path}: {line}" for line in refused))
    return sizes
