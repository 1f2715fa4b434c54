"""Voices and utterances of random tokens for the flow's tests."""

from dataclasses import dataclass
from typing import Any

import torch

from voicefleet.worker.engines.cosyvoice2.flow.blocks import BlockRenderer
from voicefleet.worker.engines.cosyvoice2.flow.model import Flow
from voicefleet.worker.engines.cosyvoice2.flow.utterance import FlowPrompt, Rendering
from voicefleet.worker.engines.cosyvoice2.hyperparameters import TINY, Hyperparameters


@dataclass(frozen=True)
class Case:
    """What upstream's ``inference`` is given: ``tokens`` begin with the prompt's."""

    tokens: list[int]
    prompt: int
    mel: Any
    speaker: Any

    @property
    def spoken(self) -> list[int]:
        return self.tokens[self.prompt :]


def case(prompt: int, spoken: int, seed: int = 0) -> Case:
    draw = torch.Generator().manual_seed(1000 * prompt + spoken + seed)
    tokens = torch.randint(0, 6561, (prompt + spoken,), generator=draw).tolist()
    mel = torch.randn(2 * prompt, 80, generator=draw)
    return Case(tokens, prompt, mel, torch.randn(192, generator=draw))


def random_flow(
    sizes: Hyperparameters = TINY, dtype: Any = torch.float32, device: str = "cpu"
) -> Flow:
    torch.manual_seed(5)
    flow = Flow(sizes.flow)
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            if "pos_bias" in name:  # zeros until a checkpoint is loaded
                parameter.normal_(std=0.1)
    flow.to(device, dtype).eval().requires_grad_(False)
    flow.optimise()
    return flow


def whole(flow: Flow, one: Case, *, streaming: bool = True) -> Any:
    """The utterance's frames in one go, ``[frames, 80]``."""
    mel = flow.render(
        torch.tensor([one.tokens]),
        torch.tensor([len(one.tokens)]),
        one.mel[None],
        one.speaker[None],
        streaming=streaming,
        final=True,
    )
    return mel[0, 2 * one.prompt :]


def load(renderer: BlockRenderer, one: Case) -> FlowPrompt:
    return renderer.prompt(one.tokens[: one.prompt], one.mel, one.speaker)


def speak(renderer: BlockRenderer, rendering: Rendering, spoken: list[int]) -> list[Any]:
    """Every block of an utterance as its tokens arrive one by one, cut to its own frames."""
    mels: list[Any] = []
    for count in range(1, len(spoken) + 1):
        while block := rendering.next(spoken[:count], count == len(spoken)):
            mels.append(renderer.render([block], 1)[0, block.first : block.frames])
    return mels


def relative(a: Any, b: Any) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())
