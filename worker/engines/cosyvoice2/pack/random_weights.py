"""Random weights in the published layout, scaled so that activations stay in a sane range.

Every tensor has its own generator, seeded by the pack's seed and the tensor's name, so that it is
the same on every machine.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from voicefleet.worker.engines.cosyvoice2.hyperparameters import Hyperparameters
from voicefleet.worker.engines.cosyvoice2.pack import checkpoint, layout

F0_HZ: Final = 150.0
"""The pitch of a random voice: without it the predictor would return unvoiced frames."""

LOUDNESS: Final = 2.5
"""Added to log magnitudes: random weights alone are almost silent."""

END_BIAS: Final = 2.8
"""Added to the end token's logit, for a tenth of the nucleus: random logits alone never end."""

LM_HEAD: Final = "llm.model.lm_head.weight"
EMBED_TOKENS: Final = "llm.model.model.embed_tokens.weight"

_WEIGHT_NORMED: Final = re.compile(
    r"(conv_pre|conv_post|ups\.\d+|(source_)?resblocks\.\d+\.convs[12]\.\d+"
    r"|f0_predictor\.condnet\.\d+)\.weight"
)
"""The vocoder's layers that are published with weight norm, as magnitude and direction."""

_EMBEDDINGS: Final = frozenset(
    {EMBED_TOKENS, "llm_embedding.weight", "speech_embedding.weight", "input_embedding.weight"}
)
_RESIDUAL: Final = re.compile(r"resblocks\.\d+\.convs2\.\d+\.weight")


def draw(sizes: Hyperparameters, seed: int) -> dict[str, dict[str, Tensor]]:
    """The contents of ``llm.pt``, ``flow.pt`` and ``hift.pt``, by file: float32 on the CPU.

    As published, the text head is a copy of the text embedding, and the vocoder's weight norm is
    not folded.
    """
    model = checkpoint.skeleton(sizes)
    llm = _state(model.language_model.state_dict(), seed)
    llm["llm_decoder.bias"][sizes.language_model.end_token] = END_BIAS
    llm[LM_HEAD] = llm[EMBED_TOKENS]
    hift = _state(model.vocoder.state_dict(), seed)
    hift["f0_predictor.classifier.weight"] *= 20.0
    hift["f0_predictor.classifier.bias"].fill_(F0_HZ)
    hift["conv_post.bias"][: sizes.vocoder.fft // 2 + 1] += LOUDNESS
    return {
        layout.LANGUAGE_MODEL: llm,
        layout.FLOW: _state(model.flow.state_dict(), seed),
        layout.VOCODER: _weight_norm_parts(hift),
    }


def generator(seed: int, name: str) -> torch.Generator:
    """The random generator of the tensor ``name``."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _state(needed: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    return {
        name: _tensor(name, tensor.shape, generator(seed, name)) for name, tensor in needed.items()
    }


def _tensor(name: str, shape: torch.Size, source: torch.Generator) -> Tensor:
    drawn = torch.empty(shape)
    if name in _EMBEDDINGS:
        return drawn.normal_(generator=source)
    if len(shape) == 1:
        # Norm gains and slopes are about 1, biases about 0; not exactly, so that tests notice
        # mistakes with them.
        centre = 0.0 if name.endswith("bias") else 1.0
        return drawn.normal_(centre, 0.02, generator=source)
    bound = 1.0 / math.sqrt(math.prod(shape[1:]))
    if _RESIDUAL.fullmatch(name):
        bound *= 0.3
    return drawn.uniform_(-bound, bound, generator=source)


def _weight_norm_parts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if _WEIGHT_NORMED.fullmatch(name):
            stem = f"{name.removesuffix('weight')}parametrizations.weight.original"
            over = tuple(range(1, tensor.ndim))
            parts[f"{stem}0"] = torch.linalg.vector_norm(tensor, dim=over, keepdim=True)
            parts[f"{stem}1"] = tensor
        else:
            parts[name] = tensor
    return parts
