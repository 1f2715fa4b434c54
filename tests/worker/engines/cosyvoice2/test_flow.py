"""The flow against upstream's: encoder, estimator, every streamed chunk, the last full pass."""

import os
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the cosyvoice2 engine needs torch")
pytest.importorskip("cosyvoice", reason="upstream's code is the reference")

import torch.nn.functional as F

from tests.worker.engines.cosyvoice2 import oracle
from tests.worker.engines.cosyvoice2.flow_cases import Case, case, load, relative
from voicefleet.worker.engines.cosyvoice2.flow.blocks import BlockRenderer
from voicefleet.worker.engines.cosyvoice2.flow.context import FlowContext, full_context
from voicefleet.worker.engines.cosyvoice2.flow.estimator import moments
from voicefleet.worker.engines.cosyvoice2.flow.model import Flow
from voicefleet.worker.engines.cosyvoice2.hyperparameters import TINY, Hyperparameters

SIZES = [pytest.param(TINY, id="tiny")]
if os.environ.get("VOICEFLEET_FULL_SIZE") == "1":
    SIZES.append(pytest.param(Hyperparameters(), id="full", marks=pytest.mark.timeout(900)))

TOLERANCE = 1e-5


class Pair:
    """Upstream's module and ours with its weights."""

    def __init__(self, sizes: Hyperparameters) -> None:
        self.upstream = oracle.flow(sizes)
        self.state = self.upstream.state_dict()
        self.sizes = sizes
        self.ours = self.load()

    def load(self, dtype: Any = torch.float32) -> Flow:
        flow = Flow(self.sizes.flow)
        flow.load_state_dict(self.state, strict=True)
        flow.to(dtype).eval().requires_grad_(False)
        flow.optimise()
        return flow

    def inference(self, one: Case, seen: int, *, streaming: bool, final: bool) -> Any:
        """Upstream's frames ``[frames, 80]`` after ``seen`` tokens of the utterance."""
        prompt, tokens = one.tokens[: one.prompt], one.spoken[:seen]
        mel, _ = self.upstream.inference(
            torch.tensor([tokens]),
            torch.tensor([seen]),
            torch.tensor([prompt], dtype=torch.long),
            torch.tensor([one.prompt]),
            one.mel[None],
            torch.tensor([len(one.mel)]),
            one.speaker[None],
            streaming,
            final,
        )
        return mel[0].T


@pytest.fixture(scope="module", params=SIZES)
def pair(request: Any) -> Pair:
    return Pair(request.param)


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def test_a_meta_module_tells_the_layout(pair: Pair) -> None:
    with torch.device("meta"):
        flow = Flow(pair.sizes.flow)
    ours = {name: tensor.shape for name, tensor in flow.state_dict().items()}
    assert ours == {name: tensor.shape for name, tensor in pair.state.items()}
    flow.load_state_dict(pair.state, strict=True, assign=True)
    flow.eval().requires_grad_(False)
    flow.optimise()
    one = case(3, 9)
    theirs = pair.inference(one, 9, streaming=True, final=True)
    rendered = flow.render(
        torch.tensor([one.tokens]),
        torch.tensor([12]),
        one.mel[None],
        one.speaker[None],
        streaming=True,
        final=True,
    )
    assert relative(rendered[0, 6:], theirs) < TOLERANCE


def test_the_noise_is_upstreams(pair: Pair) -> None:
    assert torch.equal(pair.ours.noise.T[None], pair.upstream.decoder.rand_noise)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("context", [True, False])
def test_the_encoder(pair: Pair, streaming: bool, context: bool) -> None:
    x = torch.randn(1, 63, 512, generator=torch.Generator().manual_seed(1))
    if context:
        own, ahead = x[:, :60], x[:, 60:]
        theirs, _ = pair.upstream.encoder(
            own, torch.tensor([60]), context=ahead, streaming=streaming
        )
    else:
        theirs, _ = pair.upstream.encoder(x, torch.tensor([63]), streaming=streaming)
        x = F.pad(x, (0, 0, 0, 3))
    size = x.shape[1] - 3
    present = torch.arange(size + 3)[None] < 63
    chunk = 25 if streaming else None
    tokens = full_context(torch.tensor([size]), size, chunk, x.dtype)
    frames = full_context(torch.tensor([2 * size]), 2 * size, chunk and 2 * chunk, x.dtype)
    positions = pair.ours.encoder.positions(size, size)
    ours = pair.ours.encoder(x, present, positions, tokens, frames)
    assert ours.shape == theirs.shape
    assert relative(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("step", [0, 4, 9])
def test_one_call_of_the_estimator(pair: Pair, streaming: bool, step: int) -> None:
    draw = torch.Generator().manual_seed(2)
    x, mu, prompt = torch.randn(3, 1, 120, 80, generator=draw)
    speaker = torch.randn(1, 80, generator=draw)

    def rows(given: Any) -> Any:
        return torch.cat([given, torch.zeros_like(given)])

    time = moments(10)[0][step]
    theirs = pair.upstream.decoder.estimator(
        torch.cat([x, x]).transpose(1, 2),
        torch.ones(2, 1, 120),
        rows(mu).transpose(1, 2),
        torch.full((2,), time),
        rows(speaker),
        rows(prompt).transpose(1, 2),
        streaming=streaming,
    )
    context = full_context(torch.tensor([120, 120]), 120, 50 if streaming else None, x.dtype)
    every = FlowContext(context, context, context, context, [context])
    estimator = pair.ours.decoder.estimator
    constants = estimator.constants(mu, speaker, prompt, every.constants)
    ours = estimator(x, constants, step, every.inputs, context)
    assert relative(ours[0], theirs.transpose(1, 2)) < TOLERANCE


@pytest.mark.parametrize(("prompt", "spoken"), [(38, 70), (50, 55), (0, 60)])
def test_every_chunk_of_upstreams_stream(pair: Pair, prompt: int, spoken: int) -> None:
    """Upstream's hops: the prompt rounded up to 25 and 25 tokens, then 25 each, 3 ahead."""
    one = case(prompt, spoken)
    renderer = BlockRenderer(pair.ours, pages=12, states=2, max_blocks=8)
    rendering = renderer.begin(load(renderer, one))
    assert rendering is not None
    ours: list[Any] = []
    done, hop = 0, 25 + -prompt % 25
    compared = 0
    while done + hop + 3 <= spoken:
        seen = done + hop + 3
        theirs = pair.inference(one, seen, streaming=True, final=False)[2 * done :]
        while block := rendering.next(one.spoken[:seen], False):
            ours.append(renderer.render([block], 1)[0, block.first : block.frames])
        made = torch.cat(ours)[2 * done :]
        assert made.shape == theirs.shape
        assert relative(made, theirs) < TOLERANCE
        done, hop, compared = done + hop, 25, compared + 1
    assert compared >= 1
    theirs = pair.inference(one, spoken, streaming=True, final=True)[2 * done :]
    while block := rendering.next(one.spoken, True):
        ours.append(renderer.render([block], 1)[0, block.first : block.frames])
    assert relative(torch.cat(ours)[2 * done :], theirs) < TOLERANCE


@pytest.mark.parametrize(("prompt", "spoken"), [(38, 61), (0, 1), (25, 26)])
@pytest.mark.parametrize("streaming", [True, False])
def test_the_last_pass(pair: Pair, prompt: int, spoken: int, streaming: bool) -> None:
    """Upstream's last chunk is everything anew, without the streaming mask."""
    one = case(prompt, spoken)
    theirs = pair.inference(one, spoken, streaming=streaming, final=True)
    ours = pair.ours.render(
        torch.tensor([one.tokens]),
        torch.tensor([len(one.tokens)]),
        one.mel[None],
        one.speaker[None],
        streaming=streaming,
        final=True,
    )
    assert relative(ours[0, 2 * prompt :], theirs) < TOLERANCE


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("final", [True, False])
def test_rows_of_different_length(pair: Pair, streaming: bool, final: bool) -> None:
    cases = [case(38, 30), case(0, 25), case(10, 61)]
    length = max(len(one.tokens) for one in cases)
    longest = max(one.prompt for one in cases)
    mels = pair.ours.render(
        torch.tensor([one.tokens + [7] * (length - len(one.tokens)) for one in cases]),
        torch.tensor([len(one.tokens) for one in cases]),
        torch.stack([F.pad(one.mel, (0, 0, 0, 2 * (longest - one.prompt))) for one in cases]),
        torch.stack([one.speaker for one in cases]),
        streaming=streaming,
        final=final,
    )
    for one, mel in zip(cases, mels, strict=True):
        theirs = pair.inference(one, len(one.spoken), streaming=streaming, final=final)
        own = mel[2 * one.prompt :][: len(theirs)]
        assert relative(own, theirs) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(pair: Pair, dtype: Any) -> None:
    one = case(38, 70)
    flow = pair.load(dtype)
    theirs = pair.inference(one, 70, streaming=True, final=True)
    renderer = BlockRenderer(flow, pages=12, states=2, max_blocks=8)
    rendering = renderer.begin(load(renderer, one))
    assert rendering is not None
    ours: list[Any] = []
    while block := rendering.next(one.spoken, True):
        ours.append(renderer.render([block], 1)[0, block.first : block.frames])
    mel = torch.cat(ours)
    assert mel.dtype == torch.float32
    error = relative(mel, theirs)
    assert 1e-5 < error < 5e-2  # as near as that, and really in half precision
