"""Vocoders of random weights whose pitch is what a test asks for, and windows run one by one."""

import torch
from torch import Tensor

from voicefleet.worker.engines.cosyvoice2.hyperparameters import TINY
from voicefleet.worker.engines.cosyvoice2.vocoder.model import Vocoder
from voicefleet.worker.engines.cosyvoice2.vocoder.noise import read_noise
from voicefleet.worker.engines.cosyvoice2.vocoder.source import Cursor
from voicefleet.worker.engines.cosyvoice2.vocoder.windows import Windows

SIZES = TINY.vocoder
HOP = SIZES.hop

PITCHES = {"voiced": (150.0, 20.0), "unvoiced": (2.0, 0.1), "mixed": (10.0, 800.0), "sweep": (0, 0)}
"""Mean pitch, and how much it follows the mel frames."""


def vocoder(pitch: str = "voiced", **options: bool) -> Vocoder:
    torch.manual_seed(5)
    module = Vocoder(SIZES, **options).eval().requires_grad_(False)
    classifier = module.f0_predictor.classifier
    bias, weight = PITCHES[pitch]
    classifier.bias.fill_(bias)
    if pitch == "sweep":  # the first layer sees band 0, the others let its ramp through
        for layer in module.f0_predictor.condnet:
            if isinstance(layer, torch.nn.Conv1d):
                layer.weight.zero_()
                layer.bias.zero_()
                layer.weight[0, 0, 1] = 1.0
        classifier.weight.zero_()
        classifier.weight[0, 0] = 1.0
    else:
        classifier.weight.mul_(weight)
    module.optimise()
    return module


def mel(frames: int, pitch: str = "voiced", seed: int = 1) -> Tensor:
    """``[1, 80, frames]``; its band 0 sweeps from 80 to 400 where a sweep is asked for."""
    generator = torch.Generator().manual_seed(seed)
    bands = torch.randn(1, SIZES.mel_bands, frames, generator=generator) * 2 - 4
    if pitch == "sweep":
        bands[0, 0] = torch.linspace(80, 400, frames)
    return bands


def one_shot(module: Vocoder, bands: Tensor, offset: int) -> Tensor:
    """``[n]``"""
    noise = noise_of(module, bands.shape[2], offset)
    return module.waveform(bands, noise)[0]


def noise_of(module: Vocoder, frames: int, offset: int) -> Tensor:
    table = module.get_buffer("_noise")
    return read_noise(table, torch.tensor([offset]), torch.tensor([0]), frames * HOP)


def cursor(first: int, anchor: int, until: int, phase: Tensor) -> Cursor:
    return Cursor(torch.tensor([first]), torch.tensor([anchor]), torch.tensor([until]), phase)


def in_windows(
    module: Vocoder, bands: Tensor, offset: int, plan: Windows, arrivals: list[int]
) -> tuple[Tensor, list[int]]:
    """The utterance's samples ``[n]`` window by window, and where the seams are.

    ``arrivals`` are the frames there are at each time; the whole utterance comes last. Padding is
    filled with something large.
    """
    phase = torch.zeros(1, dtype=torch.float64)
    total = bands.shape[2]
    pieces: list[Tensor] = []
    seams: list[int] = []
    for frames in [*arrivals, total]:
        while (window := plan.next(frames, final=frames == total)) is not None:
            rows = torch.full((1, window.frames, SIZES.mel_bands), 5.0)
            filled = bands[:, :, window.start : window.start + window.filled]
            assert filled.shape[2] == window.filled
            assert window.start + window.filled <= frames
            rows[:, : window.filled] = filled.transpose(1, 2)
            place = cursor(window.start, window.anchor, window.until, phase)
            ends = torch.tensor([window.filled]) if window.whole else None
            samples, phase = module.window(rows, torch.tensor([offset]), place, window.trim, ends)
            pieces.append(samples[0, window.kept(HOP)])
            seams.append(window.until * HOP)
            if window.final:
                return torch.cat(pieces), seams[:-1]
    raise AssertionError("the plan never came to an end")


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())
