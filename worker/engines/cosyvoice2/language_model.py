"""The language model: text tokens to speech tokens, for all sessions at once.

The sequence of one utterance is: start, prompt text and text, task, prompt speech, speech. Where
text is streamed, text and speech are interleaved instead (``interleave``).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from worker.engines.cosyvoice2 import sampling
from worker.engines.cosyvoice2.hyperparameters import LanguageModelSizes
from worker.engines.cosyvoice2.qwen2 import KVCache, Qwen2

CONTROL_TOKENS = 3
_START, _TASK = 0, 1


class _Holder(nn.Module):
    """A level of the checkpoint's names."""

    model: nn.Module

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class LanguageModel(nn.Module):
    """Upstream's ``Qwen2LM``. The names of its weights are those of ``llm.pt``."""

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
        """Fuse weights. To be called once they are loaded."""
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

    def sequence(self, text: Tensor, prompt_speech: Tensor) -> Tensor:
        """What an utterance begins with, ``[n, width]``; ``text`` includes the prompt's text."""
        return torch.cat((self.start(), self.text(text), self.task(), self.speech(prompt_speech)))


class Decoder:
    """Decodes speech tokens in ``slots`` sessions, step by step and all together.

    All state lies on the device in tensors that never move, so that ``step`` can be captured in a
    CUDA graph. The host writes into a slot when an utterance begins, sets how far each slot may
    run, and reads tokens after a burst of steps.

    Args:
        model: Loaded.
        slots: Sessions side by side.
        length: Positions of a slot's cache: prompt, text and speech of an utterance.
        max_tokens: Longest utterance, in speech tokens.
    """

    def __init__(self, model: LanguageModel, slots: int, length: int, max_tokens: int) -> None:
        self.model = model
        self.slots = slots
        self.max_tokens = max_tokens
        weight = model.speech_embedding.weight
        self._device, self._dtype = weight.device, weight.dtype
        self.cache = KVCache(model.sizes, slots, length, self._dtype, self._device)
        model.body.rotary.prepare(length, self._dtype, self._device)
        window = model.sizes.sampling.window
        self._last = self._integers(slots)
        self._position = self._integers(slots)
        self._count = self._integers(slots)
        self._limit = self._integers(slots)
        self._fill_at = torch.full_like(self._count, -1)
        self._fresh = torch.zeros(slots, dtype=torch.bool, device=self._device)
        self._stopped = torch.ones(slots, dtype=torch.bool, device=self._device)
        # The window before the first token holds what no token is.
        self._history = self._integers(slots, window + max_tokens + 1).fill_(-1)
        self._draws = torch.zeros(slots, max_tokens + 1, sampling.DRAWS, device=self._device)
        self._pending = torch.zeros(slots, weight.shape[1], dtype=self._dtype, device=self._device)
        # Until ``quiet_until`` tokens stand, the control tokens of ``mute`` do not come.
        self._quiet_until = self._integers(slots)
        self._mute = torch.zeros(slots, CONTROL_TOKENS, dtype=torch.bool, device=self._device)
        self._window = torch.arange(window, device=self._device)
        self._none = torch.zeros(
            slots, model.sizes.speech_tokens, dtype=torch.bool, device=self._device
        )

    def begin(self, slot: int, uniform: Tensor) -> None:
        """Make a slot ready for a new utterance with its draws ``[max_tokens or fewer, 2]``."""
        self._draws[slot, : len(uniform)] = uniform.to(self._device)
        self._history[slot] = -1
        for state in (self._count, self._position, self._limit, self._quiet_until):
            state[slot] = 0
        self._fill_at[slot] = -1
        self._mute[slot] = False
        self._stopped[slot] = True

    def read(self, slot: int, embeddings: Tensor, start: int, reach: int) -> None:
        """Read ``embeddings [n, width]`` from position ``start`` on; the next step goes on there.

        All but the last go into the cache now; the last is the input of the next step, whose
        output is the next token.
        """
        n = len(embeddings)
        if n > 1:
            self.model.body.extend(
                embeddings[None, :-1], self._at(slot), self._at(start), self.cache, reach
            )
        self._pending[slot] = embeddings[-1]
        self._position[slot] = start + n - 1
        self._fresh[slot] = True
        self._stopped[slot] = False

    def rule(self, slot: int, *, quiet_until: int, mute: Sequence[bool], fill_at: int = -1) -> None:
        """Until ``quiet_until`` tokens stand, muted control tokens (end, 2nd, fill) do not come.

        Token number ``fill_at`` will be the fill token whatever the model says; -1: none.
        """
        self._quiet_until[slot] = quiet_until
        self._mute[slot] = torch.tensor(mute, device=self._device)
        self._fill_at[slot] = fill_at

    def allow(self, limits: Tensor) -> None:
        """Let each slot run until it has ``limits [slots]`` tokens; those at it stand still."""
        self._limit.copy_(limits, non_blocking=True)

    def step(self, reach: int) -> None:
        """One token in every slot that may run. ``reach``: more than any position in use."""
        model, sizes = self.model, self.model.sizes
        x = torch.where(self._fresh[:, None], self._pending, model.speech_embedding(self._last))
        hidden = model.body.decode(x, self._position, self.cache, reach)
        logits = model.llm_decoder(hidden).float()
        token = self._choose(logits)
        run = ~self._stopped & (self._count < self._limit)
        # History has a window of nothing before it, and a place behind it for those that stand.
        place = torch.where(run, self._count, self.max_tokens) + len(self._window)
        self._history.scatter_(1, place[:, None], token[:, None])
        self._last.copy_(torch.where(run, token, self._last))
        self._fresh &= ~run
        self._position += run
        self._count += run
        self._stopped |= run & (token >= sizes.speech_tokens)

    def tokens(self, since: Tensor, steps: int) -> Tensor:
        """What became of the latest steps, as one tensor to bring to the host.

        Args:
            since: ``[slots]`` int64: tokens of each slot that the host has.
            steps: At most so many new ones.

        Returns:
            ``[slots, 2 + steps]`` int64: the count, whether it stopped, tokens from ``since`` on.
        """
        index = since[:, None] + torch.arange(steps, device=self._device) + len(self._window)
        new = self._history.gather(1, index.clamp(max=self._history.shape[1] - 1))
        return torch.cat((self._count[:, None], self._stopped[:, None].long(), new), dim=1)

    def _choose(self, logits: Tensor) -> Tensor:
        recent = self._history.gather(1, self._count[:, None] + self._window)
        uniform = self._draws[torch.arange(self.slots, device=self._device), self._count]
        muted = self._mute & (self._count < self._quiet_until)[:, None]
        forbidden = torch.cat((self._none, muted), dim=1)
        token = sampling.choose(logits, recent, uniform, forbidden, self.model.sizes.sampling)
        return torch.where(self._count == self._fill_at, self.model.sizes.fill_token, token)

    def _integers(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=self._device)

    def _at(self, value: int) -> Tensor:
        return torch.full((1,), value, dtype=torch.int64, device=self._device)
