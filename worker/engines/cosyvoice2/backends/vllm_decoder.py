"""vLLM as the source of speech tokens, as upstream's ``load_vllm`` has it.

Not measured on a GPU yet. It differs from the native decoder:

* It samples from the 25 likeliest tokens, as upstream does with vLLM. Repetition-aware sampling,
  which the native decoder has, is not an option of vLLM.
* vLLM composes its own batches, and a row's rounding may depend on its batch: a turn that another
  worker takes over gets the same seeds, but perhaps other tokens.
* Slots do not stop at their limits: tokens come early, up to the utterance's maximum.
* Text cannot be streamed: vLLM takes a prompt once, and the interleave extends it.
"""

import os
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voicefleet.worker.engines.cosyvoice2 import budget
from voicefleet.worker.engines.cosyvoice2.backends import requirements, vllm_model
from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.family import CosyVoice2Config
from voicefleet.worker.engines.cosyvoice2.lm.language_model import CONTROL_TOKENS, LanguageModel
from voicefleet.worker.engines.cosyvoice2.lm.qwen2 import KVCache

WORKING_BYTES = 3 * 2**30
"""Memory for vLLM's activations and graphs, besides weights and KV cache."""

DRY_RUN_TOKENS = 6
"""Tokens of a dry run: its first step is a prefill, the others decode."""


class VllmDecoder:
    """Speech tokens from a vLLM engine in this process. A ``TokenSource``.

    Args:
        model: Makes the embeddings; its layers may have been deleted.
        slots: Sequences decoded at once.
        engine: A ``vllm.LLMEngine``.
        sampling: ``vllm.SamplingParams``.
        delta: ``vllm.sampling_params.RequestOutputKind.DELTA``: outputs hold new tokens only.
    """

    def __init__(
        self, model: LanguageModel, slots: int, engine: Any, sampling: Any, delta: Any
    ) -> None:
        self.model = model
        self.slots = slots
        self._engine = engine
        self._sampling = sampling
        self._delta = delta
        first = model.sizes.end_token
        self._control = list(range(first, first + CONTROL_TOKENS))
        self._requests = 0
        # For each slot: its request, and the parameters to decode it with.
        self._request: list[str | None] = [None] * slots
        self._seed = [0] * slots
        self._longest = [0] * slots
        self._min_tokens = [0] * slots
        self._count = [0] * slots
        self._news: dict[int, tuple[list[int], bool]] = {}

    def begin(self, slot: int, uniform: NDArray[np.float32]) -> None:
        """Reset a slot for a new utterance; its draws ``[tokens, 2]`` seed vLLM's own."""
        self.stop(slot)
        # vLLM draws its own numbers; equal draws give equal seeds on every worker.
        self._seed[slot] = zlib.crc32(np.ascontiguousarray(uniform[:4]).tobytes())
        self._longest[slot] = len(uniform)
        self._min_tokens[slot] = self._count[slot] = 0

    def stop(self, slot: int) -> None:
        """Abort a slot's utterance."""
        request, self._request[slot] = self._request[slot], None
        self._news.pop(slot, None)
        if request is not None:
            self._engine.abort_request([request])

    def constrain(
        self, slot: int, *, min_tokens: int, banned: Sequence[bool], fill_at: int = -1
    ) -> None:
        """Ban the control tokens until there are ``min_tokens``, if any of them is ``banned``.

        vLLM bans all control tokens or none.

        Raises:
            ValueError: A fill token is asked for, which only streamed text needs.
        """
        if fill_at >= 0:
            raise ValueError("vLLM cannot be told when a fill token comes")
        self._min_tokens[slot] = min_tokens if any(banned) else 0

    def count(self, slot: int) -> int:
        """How many tokens a slot's utterance has, control tokens included."""
        return self._count[slot]

    def prefill(self, slot: int, embeddings: Tensor) -> None:
        """Add a request with the embeddings ``[n, width]`` of an utterance's prompt.

        Raises:
            ValueError: The slot has a request already.
        """
        if self._request[slot] is not None:
            raise ValueError("vLLM reads an utterance's beginning once")
        self._request[slot] = self._add(
            embeddings,
            seed=self._seed[slot],
            min_tokens=min(self._min_tokens[slot], self._longest[slot]),
            max_tokens=self._longest[slot],
        )

    def multi_step(self, limits: Mapping[int, int], steps: int) -> None:
        """Take ``steps`` steps. vLLM decodes all its requests and ignores ``limits``."""
        slots = {request: slot for slot, request in enumerate(self._request) if request is not None}
        for _ in range(steps):
            if not self._engine.has_unfinished_requests():
                break
            for output in self._engine.step():
                # Outputs of aborted utterances and of dry runs belong to no slot.
                slot = slots.get(output.request_id)
                if slot is not None:
                    self._take(slot, output.outputs[0])

    def collect(self) -> dict[int, tuple[list[int], bool]]:
        """The new tokens of each slot, and whether a control token stopped it."""
        news, self._news = self._news, {}
        return news

    def warm_up(self, context_len: int) -> None:
        """Do nothing: vLLM captured its graphs when it was built."""

    def dry_run(self) -> None:
        """Take one step in which every slot has work, to time it."""
        if not self._engine.has_unfinished_requests():
            start = self.model.start().expand(2, -1)
            for _ in range(self.slots):
                self._add(start, seed=0, min_tokens=DRY_RUN_TOKENS, max_tokens=DRY_RUN_TOKENS)
        self._engine.step()

    def _add(self, embeddings: Tensor, *, seed: int, min_tokens: int, max_tokens: int) -> str:
        self._requests += 1
        name = str(self._requests)
        params = self._sampling(
            temperature=1.0,
            top_k=self.model.sizes.sampling.top_k,
            seed=seed,
            min_tokens=min_tokens,
            max_tokens=max_tokens,
            stop_token_ids=self._control,
            detokenize=False,
            output_kind=self._delta,
        )
        self._engine.add_request(name, {"prompt_embeds": embeddings.detach().cpu()}, params)
        return name

    def _take(self, slot: int, output: Any) -> None:
        tokens, stopped = self._news.get(slot, ([], False))
        new = list(output.token_ids)
        self._count[slot] += len(new)
        self._news[slot] = ([*tokens, *new], stopped or output.finish_reason == "stop")
        if output.finish_reason is not None:
            self._request[slot] = None


def build(
    pack: Path,
    model: LanguageModel,
    slots: int,
    positions: int,
    config: CosyVoice2Config,
    device: torch.device,
) -> VllmDecoder:
    """Build a vLLM engine for ``slots`` sequences of up to ``positions``; delete the native layers.

    Raises:
        CosyVoiceInitializationError: vLLM cannot be made to run the model.
    """
    # vLLM runs in this process, so that it steps only when it is asked to.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    vllm: Any = requirements.vllm()
    dtype = model.speech_embedding.weight.dtype
    cache = slots * KVCache.bytes_per_slot(model.sizes, positions, dtype)
    # Free the native layers first, so that both models are never in memory at once.
    del model.body.layers
    torch.cuda.empty_cache()
    total = budget.free_memory(device)[1]
    try:
        with (
            tempfile.TemporaryDirectory(prefix="voicefleet-vllm-") as directory,
            # vLLM's weights must not be inference tensors.
            torch.inference_mode(mode=False),
        ):
            size = vllm_model.export(pack, Path(directory), model.sizes, dtype, positions)
            vllm_model.register()
            arguments = vllm.EngineArgs(
                model=directory,
                skip_tokenizer_init=True,
                enable_prompt_embeds=True,
                # Prefixes are identified by token ids, which embeddings do not have.
                enable_prefix_caching=False,
                dtype=str(dtype).removeprefix("torch."),
                max_model_len=positions,
                max_num_seqs=slots,
                gpu_memory_utilization=min(0.9, (size + cache + WORKING_BYTES) / total),
                enforce_eager=config.cuda_graphs == "off",
                generation_config="vllm",
                disable_log_stats=True,
            )
            engine = vllm.LLMEngine.from_engine_args(arguments)
    except CosyVoiceInitializationError:
        raise
    except Exception as error:
        raise CosyVoiceInitializationError(
            f"llm_backend: vllm {vllm.__version__} cannot run the language model: "
            f"{type(error).__name__}: {error}"
        ) from error
    delta = vllm.sampling_params.RequestOutputKind.DELTA
    return VllmDecoder(model, slots, engine, vllm.SamplingParams, delta)
