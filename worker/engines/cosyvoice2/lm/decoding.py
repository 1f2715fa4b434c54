"""Decodes speech tokens for all sequences at once, in several steps for each call of the host."""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voicefleet.worker.engines.cosyvoice2.graphs import Graphs
from voicefleet.worker.engines.cosyvoice2.lm import sampling
from voicefleet.worker.engines.cosyvoice2.lm.language_model import CONTROL_TOKENS, LanguageModel
from voicefleet.worker.engines.cosyvoice2.lm.qwen2 import KVCache
from voicefleet.worker.engines.cosyvoice2.transfer import Transfer, to_device

MIN_CONTEXT_LEN = 256
"""The shortest context that attention reads; it doubles as sequences grow."""

PROMPT_BUCKETS = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Lengths to which prefills are padded with CUDA graphs."""

CONTINUATION_BUCKET = 32
"""The longest prefill of a slot in use. Streamed text needs five embeddings and a few more."""

MAX_MULTI_STEP = 16
"""The most decode steps started at once."""


class Decoder:
    """Decodes speech tokens in ``slots`` slots, one sequence in each.

    All state is on the device in tensors of fixed address, so that a step can be captured in a CUDA
    graph. The host prefills a slot when an utterance begins, sets a limit of tokens for each slot,
    starts several steps, and collects their tokens afterwards. Every step computes all slots, used
    or not. That costs little, since each step reads all weights from memory anyway, and it makes a
    slot's tokens bit-identical whatever the other slots hold.

    Args:
        model: The loaded language model.
        slots: Sequences decoded at once.
        length: KV cache positions of a slot: prompt, text and speech of an utterance.
        max_tokens: The longest utterance, in speech tokens.
        graphs: Runs the steps.
    """

    def __init__(
        self, model: LanguageModel, slots: int, length: int, max_tokens: int, graphs: Graphs
    ) -> None:
        self.model = model
        self.slots = slots
        self.length = length
        self.max_tokens = max_tokens
        self._graphs = graphs
        weight = model.speech_embedding.weight
        self._device, self._dtype = weight.device, weight.dtype
        # The last position takes the padding of prefills; attention never reads it.
        self.cache = KVCache(model.sizes, slots, length + 1, self._dtype, self._device)
        model.body.rotary.prepare(length + 1, self._dtype, self._device)
        window = model.sizes.sampling.window
        self._window = torch.arange(window, device=self._device)
        self._rows = torch.arange(slots, device=self._device)

        self._last = self._integers(slots)
        self._position = self._integers(slots)
        self._count = self._integers(slots)
        self._limit = self._integers(slots)
        self._since = self._integers(slots)
        self._stopped = torch.ones(slots, dtype=torch.bool, device=self._device)
        # A slot's next input is the last embedding of its prefill, then that of its last token.
        self._fresh = torch.zeros(slots, dtype=torch.bool, device=self._device)
        self._pending = torch.zeros(slots, weight.shape[1], dtype=self._dtype, device=self._device)
        # ``window`` entries of -1 precede the first token; the last entry takes what stopped slots
        # write.
        self._history = self._integers(slots, window + max_tokens + 1).fill_(-1)
        self._draws = torch.zeros(slots, max_tokens + 1, sampling.DRAWS, device=self._device)
        self._fill_at = torch.full_like(self._count, -1)
        self._min_tokens = self._integers(slots)
        self._banned = torch.zeros(slots, CONTROL_TOKENS, dtype=torch.bool, device=self._device)
        self._codes = torch.zeros(
            slots, model.sizes.speech_tokens, dtype=torch.bool, device=self._device
        )
        self._slot, self._start = self._integers(1), self._integers(1)
        self._prompts: dict[int, Tensor] = {}

        self._host_position = [0] * slots
        self._host_count = [0] * slots
        self._pending_output: Transfer | None = None

    def begin(self, slot: int, uniform: NDArray[np.float32]) -> None:
        """Reset a slot for a new utterance. ``uniform`` ``[tokens, 2]``: its random draws."""
        self._draws[slot, : len(uniform)] = to_device(torch.from_numpy(uniform), self._device)
        self._history[slot] = -1
        for state in (self._count, self._position, self._limit, self._since, self._min_tokens):
            state[slot] = 0
        self._fill_at[slot] = -1
        self._banned[slot] = False
        self._host_position[slot] = self._host_count[slot] = 0
        self.stop(slot)

    def stop(self, slot: int) -> None:
        """Stop decoding in a slot until its next prefill."""
        self._stopped[slot] = True

    def constrain(
        self, slot: int, *, min_tokens: int, banned: Sequence[bool], fill_at: int = -1
    ) -> None:
        """Constrain the control tokens (end, second, fill) of a slot.

        Args:
            slot: The slot.
            min_tokens: Until the slot has so many tokens, ``banned`` ones are not sampled.
            banned: For each control token, whether it is banned.
            fill_at: The token of this number is the fill token, whatever the logits; -1: none.
        """
        self._min_tokens[slot] = min_tokens
        self._banned[slot] = to_device(banned, self._device)
        self._fill_at[slot] = fill_at

    def count(self, slot: int) -> int:
        """How many tokens of a slot's utterance were collected, control tokens included."""
        return self._host_count[slot]

    def prefill(self, slot: int, embeddings: Tensor) -> None:
        """Append embeddings ``[n, width]`` to a slot's sequence.

        All but the last are written to the KV cache now. The last one is the input of the next
        decode step, whose output is the next token.
        """
        before = len(embeddings) - 1
        start = self._host_position[slot]
        at = 0
        while at < before:
            longest = CONTINUATION_BUCKET if start + at else PROMPT_BUCKETS[-1]
            self._prefill_chunk(slot, start + at, embeddings[at : min(at + longest, before)])
            at += longest
        self._pending[slot] = embeddings[-1]
        self._position[slot] = self._host_position[slot] = start + before
        self._fresh[slot] = True
        self._stopped[slot] = False

    def multi_step(self, limits: Mapping[int, int], steps: int) -> None:
        """Start ``steps`` decode steps, in which each slot runs until it has its limit of tokens.

        Slots without a limit do not run. ``collect`` returns the tokens.
        """
        farthest = max(
            self._host_position[slot] + min(steps, limit - self._host_count[slot])
            for slot, limit in limits.items()
        )
        context_len = self._context_len(farthest + 1)
        self._prepare(context_len)
        everywhere = [limits.get(slot, 0) for slot in range(self.slots)]
        self._limit.copy_(to_device(everywhere, self._device))
        self._since.copy_(self._count)
        for _ in range(steps):
            self._graphs.run(("decode", context_len), lambda: self._step(context_len))
        index = self._since[:, None] + self._window_of(steps)
        new = self._history.gather(1, index.clamp_(max=self._history.shape[1] - 1))
        outcome = (self._count[:, None], self._stopped[:, None].long(), new)
        self._pending_output = Transfer(torch.cat(outcome, dim=1))

    def collect(self) -> dict[int, tuple[list[int], bool]]:
        """Wait for the steps that were started.

        Returns:
            For each slot that ran, its new tokens, and whether a control token stopped it; that
            token is the last of them.
        """
        if self._pending_output is None:
            return {}
        rows = cast(list[list[int]], self._pending_output.wait().tolist())
        self._pending_output = None
        outcome: dict[int, tuple[list[int], bool]] = {}
        for slot, (count, stopped, *tokens) in enumerate(rows):
            new = count - self._host_count[slot]
            if new > 0:
                self._host_count[slot] += new
                self._host_position[slot] += new
                outcome[slot] = tokens[:new], bool(stopped)
        return outcome

    def warm_up(self, context_len: int) -> None:
        """Capture decode steps for contexts up to ``context_len``, and prefills of all sizes."""
        farthest = self._context_len(min(context_len, self.length))
        doubling = [MIN_CONTEXT_LEN << power for power in range(self.length.bit_length())]
        context_lens = [*(size for size in doubling if size < farthest), farthest]
        for size in context_lens:
            self._prepare(size)
        if self._graphs.enabled:
            for size in context_lens:
                self._prepare_prefill(CONTINUATION_BUCKET, size)
            for bucket in PROMPT_BUCKETS:
                if bucket < self.length:
                    self._prepare_prefill(bucket, bucket)

    def dry_run(self) -> None:
        """Run one step without effect on any slot, to time it."""
        self._limit.zero_()
        context_len = self._context_len(1)
        self._prepare(context_len)
        self._graphs.run(("decode", context_len), lambda: self._step(context_len))

    def _prefill_chunk(self, slot: int, start: int, embeddings: Tensor) -> None:
        """Write embeddings ``[n, width]`` to the slot's KV cache from position ``start`` on."""
        bucket = n = len(embeddings)
        if self._graphs.enabled:
            bucket = next(size for size in PROMPT_BUCKETS if size >= n)
        # The first prefill of a sequence attends to itself alone.
        context_len = self._context_len(start + bucket) if start else bucket
        if self._graphs.enabled:
            self._prepare_prefill(bucket, context_len)
        else:
            self._prompts = {n: self._static_prompt(n)}
        self._slot.fill_(slot)
        self._start.fill_(start)
        self._prompts[bucket][0, :n] = embeddings
        self._graphs.run(
            ("prompt", bucket, context_len), lambda: self._run_prefill(bucket, context_len)
        )

    def _prepare_prefill(self, bucket: int, context_len: int) -> None:
        if bucket not in self._prompts:
            self._prompts[bucket] = self._static_prompt(bucket)
        work = lambda: self._run_prefill(bucket, context_len)  # noqa: E731
        self._graphs.prepare(("prompt", bucket, context_len), work, self._make_idle)

    def _run_prefill(self, bucket: int, context_len: int) -> None:
        x = self._prompts[bucket]
        self.model.body.prefill(x, self._slot, self._start, self.cache, context_len)

    def _static_prompt(self, bucket: int) -> Tensor:
        width = self.model.sizes.width
        return torch.zeros(1, bucket, width, dtype=self._dtype, device=self._device)

    def _prepare(self, context_len: int) -> None:
        if not self._graphs.has(("decode", context_len)):
            self._graphs.prepare(
                ("decode", context_len), lambda: self._step(context_len), self._make_idle
            )

    def _make_idle(self) -> None:
        """Let no slot run, and let prefills write to the last position, which is never read."""
        self._limit.zero_()
        self._start.fill_(self.length)

    def _step(self, context_len: int) -> None:
        """Decode one token in every slot that may run."""
        model, sizes = self.model, self.model.sizes
        x = torch.where(self._fresh[:, None], self._pending, model.speech_embedding(self._last))
        hidden = model.body.decode(x, self._position, self.cache, context_len)
        token = self._choose(model.llm_decoder(hidden).float())
        run = ~self._stopped & (self._count < self._limit)
        column = torch.where(run, self._count, self.max_tokens) + len(self._window)
        self._history.scatter_(1, column[:, None], token[:, None])
        self._last.copy_(torch.where(run, token, self._last))
        self._fresh &= ~run
        self._position += run
        self._count += run
        self._stopped |= run & (token >= sizes.speech_tokens)

    def _choose(self, logits: Tensor) -> Tensor:
        recent = self._history.gather(1, self._count[:, None] + self._window)
        uniform = self._draws[self._rows, self._count]
        control = self._banned & (self._count < self._min_tokens)[:, None]
        forbidden = torch.cat((self._codes, control), dim=1)
        token = sampling.choose(logits, recent, uniform, forbidden, self.model.sizes.sampling)
        return torch.where(self._count == self._fill_at, self.model.sizes.fill_token, token)

    def _context_len(self, positions: int) -> int:
        context_len = MIN_CONTEXT_LEN
        while context_len < positions:
            context_len *= 2
        return min(context_len, self.length + 1)

    def _window_of(self, steps: int) -> Tensor:
        window = len(self._window)
        return torch.arange(window, window + steps, device=self._device)

    def _integers(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=self._device)
