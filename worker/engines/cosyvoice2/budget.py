"""How many slots, cache pages and batch rows a device gets, from its memory and measured speed."""

import resource
from dataclasses import dataclass

import torch

from voicefleet.worker.engines.cosyvoice2.family import CosyVoice2Config
from voicefleet.worker.engines.cosyvoice2.flow.blocks import page_bytes, state_bytes
from voicefleet.worker.engines.cosyvoice2.hyperparameters import Hyperparameters
from voicefleet.worker.engines.cosyvoice2.lm.qwen2 import KVCache

MIB = 2**20

MAX_TOKENS = 1500
"""The longest utterance, in speech tokens (60 s). Upstream allows 20 for each text token."""

POSITIONS = 2560
"""KV cache positions of a decoder slot: a prompt of 30 s and its text, 80 text tokens, and the
utterance's speech tokens."""

BLOCKS_PER_SLOT = 12
"""Flow blocks cached for each sequence: 11 s of speech and the block that the prompt leaves
unfinished. Sequences share the prompt's other blocks."""

PROMPT_BLOCKS = 64
"""Flow blocks cached for the prompts of voices in use."""

CPU_SLOTS = 4
"""Default number of slots on a CPU, where every slot makes a decode step slower."""

CPU_CACHE_MB = 2048

CUDA_BATCHES = (1, 4, 16)
CPU_BATCHES = (1, 2, 4)

HEADROOM = 0.8
"""The share of the device's time that is planned for. The rest is kept for prompts, for turns that
begin together, and for costs that were not measured."""

FREE_SHARE = 0.8
"""The share of the memory after weights and decoder that the flow's caches may take. CUDA graphs
need the rest."""


@dataclass(frozen=True)
class Budget:
    """What was planned.

    Attributes:
        slots: Decoder slots.
        positions: KV cache positions of each slot.
        pages: Flow cache pages, one for each block; ``prompt_pages`` of them are for voices.
        states: Flow convolution states, one for each utterance or prompt.
        max_blocks: The most blocks of an utterance, its prompt included.
        batches: Batch sizes of the renderer, ascending.
        slot_bytes: KV cache bytes of a slot.
        page_bytes: Bytes of a page with its state.
    """

    slots: int
    positions: int
    pages: int
    prompt_pages: int
    states: int
    max_blocks: int
    batches: tuple[int, ...]
    slot_bytes: int
    page_bytes: int

    @property
    def sequence_bytes(self) -> int:
        """Bytes for each sequence whose utterances have the usual length."""
        return self.slot_bytes + BLOCKS_PER_SLOT * self.page_bytes


def plan(
    sizes: Hyperparameters,
    config: CosyVoice2Config,
    dtype: torch.dtype,
    device: torch.device,
    free_bytes: int,
) -> Budget:
    """Divide ``free_bytes`` of device memory, those that the weights leave free."""
    on_cpu = device.type == "cpu"
    slots = config.slots or (min(CPU_SLOTS, config.max_slots) if on_cpu else config.max_slots)
    slot = KVCache.bytes_per_slot(sizes.language_model, POSITIONS, dtype)
    page = page_bytes(sizes.flow, dtype)
    wanted = slots * BLOCKS_PER_SLOT + PROMPT_BLOCKS
    if config.flow_cache_mb:
        room = config.flow_cache_mb * MIB
    elif on_cpu:
        room = min(CPU_CACHE_MB * MIB, free_bytes // 4)
    else:
        room = int(FREE_SHARE * (free_bytes - slots * slot))
    batches = CPU_BATCHES if on_cpu else CUDA_BATCHES
    if config.flow_batch:
        batches = (*(size for size in batches if size < config.flow_batch), config.flow_batch)
    encoder = sizes.flow.encoder
    pages = max(1, min(wanted, room // page))
    return Budget(
        slots=slots,
        positions=POSITIONS,
        pages=pages,
        prompt_pages=pages * PROMPT_BLOCKS // wanted,
        states=slots + PROMPT_BLOCKS,
        max_blocks=-(-(POSITIONS + encoder.lookahead) // encoder.chunk),
        batches=batches,
        slot_bytes=slot,
        page_bytes=page + state_bytes(sizes.flow, dtype),
    )


@dataclass(frozen=True)
class Speed:
    """Measured times.

    Attributes:
        step_s: Seconds of a decode step of all slots.
        batch_s: Seconds to render a batch of ``rows`` blocks.
        rows: Rows of that batch.
        token_rate: Speech tokens for a second of audio.
        block_s: Seconds of audio in a block.
    """

    step_s: float
    batch_s: float
    rows: int
    token_rate: int
    block_s: float

    @property
    def decoding_share(self) -> float:
        """The share of the device's time that decoding takes, for all sequences together."""
        return self.token_rate * self.step_s

    @property
    def rendering_share(self) -> float:
        """The share of the device's time that rendering takes for each sequence."""
        return self.batch_s / self.rows / self.block_s

    @property
    def sequences(self) -> int:
        """How many sequences are served in real time; at least 1."""
        return max(1, int((HEADROOM - self.decoding_share) / self.rendering_share))


def explain(
    shares: Budget, speed: Speed | None, sizes: Hyperparameters, offer: str
) -> tuple[tuple[str, str], ...]:
    """What limits the number of slots, as names and values for people to read."""
    cached_s = shares.pages * sizes.flow.encoder.chunk / sizes.token_rate
    rows = [
        ("decoder slots", f"{shares.slots} of {shares.slot_bytes / MIB:.1f} MiB"),
        (
            "flow cache",
            f"{shares.pages} blocks of {shares.page_bytes / MIB:.1f} MiB: remembers "
            f"{cached_s:.0f} s of audio, prompts included; what is beyond is computed anew",
        ),
    ]
    if speed is not None:
        rows += [
            (
                "decoding",
                f"{1000 * speed.step_s:.2f} ms a step of all slots, {speed.token_rate} a second: "
                f"{speed.decoding_share:.1%} of the time",
            ),
            (
                "rendering",
                f"{1000 * speed.batch_s:.1f} ms a batch of {speed.rows} blocks: "
                f"{speed.rendering_share:.2%} of the time for each session",
            ),
            ("by time", f"{speed.sequences} sessions, {1 - HEADROOM:.0%} kept free"),
        ]
    return (*rows, ("offered", offer))


def used_memory(device: torch.device) -> int:
    """Bytes of the device that this process holds; of the host, its peak resident set."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free_memory(device: torch.device) -> tuple[int, int]:
    """Free and total bytes of the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    return _host_memory()


def _host_memory() -> tuple[int, int]:
    """Available and total bytes of the host, from Linux."""
    sizes: dict[str, int] = {}
    with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123
        for line in lines:
            name, _, value = line.partition(":")
            sizes[name] = int(value.split()[0]) * 1024
    return sizes.get("MemAvailable", 0), sizes.get("MemTotal", 0)
