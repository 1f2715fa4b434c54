"""The language model: text tokens to speech tokens.

The sequence of an utterance is: start embedding, prompt text, text, task embedding, prompt speech,
speech. If text is streamed, text and speech are interleaved instead (``interleave``).
"""

import torch
from torch import Tensor, nn

from voicefleet.worker.engines.cosyvoice2.hyperparameters import LanguageModelSizes
from voicefleet.worker.engines.cosyvoice2.lm.qwen2 import Qwen2

CONTROL_TOKENS = 3
_START, _TASK = 0, 1


class _Holder(nn.Module):
    """Adds the level ``model.`` to the names of weights, as the checkpoint has it."""

    model: nn.Module

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class LanguageModel(nn.Module):
    """Upstream's ``Qwen2LM``, with the weight names of ``llm.pt``."""

    def __init__(self, sizes: LanguageModelSizes) -> None:
        super().__init__()
        self.sizes = sizes
        tokens = sizes.speech_tokens + CONTROL_TOKENS
        self.llm = _Holder(_Holder(Qwen2(sizes)))
        self.llm_embedding = nn.Embedding(2, sizes.width)
        self.llm_decoder = nn.Linear(sizes.width, tokens)
        self.speech_embedding = nn.Embedding(tokens, sizes.width)

    @property
    def body(self) -> Qwen2:
        """The transformer."""
        body = self.llm.model.model
        assert isinstance(body, Qwen2)
        return body

    def optimise(self) -> None:
        """Fuse weights; call once, after loading."""
        self.body.optimise()

    def start(self) -> Tensor:
        """The embedding that opens a sequence: ``[1, width]``."""
        return self.llm_embedding.weight[_START : _START + 1]

    def task(self) -> Tensor:
        """The embedding between text and speech: ``[1, width]``."""
        return self.llm_embedding.weight[_TASK : _TASK + 1]

    def text(self, tokens: Tensor) -> Tensor:
        """Embeddings ``[n, width]`` of text tokens ``[n]``."""
        return self.body.embed_tokens(tokens)

    def speech(self, tokens: Tensor) -> Tensor:
        """Embeddings ``[n, width]`` of speech tokens ``[n]``."""
        return self.speech_embedding(tokens)

    def prompt_embeddings(self, text: Tensor, prompt_speech: Tensor) -> Tensor:
        """The embeddings ``[n, width]`` to prefill; ``text`` begins with the prompt's text."""
        return torch.cat((self.start(), self.text(text), self.task(), self.speech(prompt_speech)))
