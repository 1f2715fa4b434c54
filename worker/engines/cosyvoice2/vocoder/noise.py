"""The excitation's noise: a fixed table, read by position, so that any window hears the same."""

import hashlib

import torch
from torch import Tensor

SECONDS = 10
_SEED = 20_240


def noise_table(sample_rate: int, width: int) -> Tensor:
    """``SECONDS`` of standard normal noise ``[N, width]``, float32 on the CPU, always the same."""
    generator = torch.Generator(device="cpu").manual_seed(_SEED)
    return torch.randn(
        SECONDS * sample_rate, width, generator=generator, dtype=torch.float32, device="cpu"
    )


def noise_offset(seed: int, segment: int) -> int:
    """Where an utterance begins in the table: any number in [0, 2**32), the same everywhere."""
    words = f"{seed}/{segment}".encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=4).digest(), "little")


def read_noise(table: Tensor, offset: Tensor, first: Tensor, samples: int) -> Tensor:
    """``[B, samples, width]`` from sample ``first`` of the utterances that begin at ``offset``.

    Both are int64 ``[B]`` on the table's device. Behind the table's end its start follows.
    """
    positions = (offset + first).unsqueeze(1) + torch.arange(samples, device=table.device)
    return torch.nn.functional.embedding(positions.remainder_(table.shape[0]), table)
