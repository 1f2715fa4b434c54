"""The excitation's noise: a fixed table read by position, so that all windows agree."""

import hashlib

import torch
from torch import Tensor

SECONDS = 10
_SEED = 20_240


def noise_table(sample_rate: int, width: int) -> Tensor:
    """``SECONDS`` of standard normal noise, float32 ``[N, width]`` on the CPU, always the same."""
    generator = torch.Generator(device="cpu").manual_seed(_SEED)
    return torch.randn(
        SECONDS * sample_rate, width, generator=generator, dtype=torch.float32, device="cpu"
    )


def noise_offset(seed: int, segment: int) -> int:
    """The utterance's offset in the table, in [0, 2**32): the same on every machine."""
    words = f"{seed}/{segment}".encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=4).digest(), "little")


def read_noise(table: Tensor, offset: Tensor, first: Tensor, samples: int) -> Tensor:
    """Read noise ``[B, samples, width]`` from sample ``first`` of utterances at ``offset``.

    Both are int64 ``[B]`` on the table's device. The table repeats after its end.
    """
    positions = (offset + first).unsqueeze(1) + torch.arange(samples, device=table.device)
    return torch.nn.functional.embedding(positions.remainder_(table.shape[0]), table)
