"""The language model against upstream's: logits, tokens, and rows that do not know of each other."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the cosyvoice extra (torch)")

from tests.cosyvoice2 import oracle
from worker.engines.cosyvoice2 import sampling
from worker.engines.cosyvoice2.hyperparameters import TINY
from worker.engines.cosyvoice2.language_model import Decoder, LanguageModel

SIZES = TINY.language_model


def ours(reference: Any, dtype: Any = torch.float32) -> LanguageModel:
    state = dict(reference.state_dict())
    del state["llm.model.lm_head.weight"]
    model = LanguageModel(SIZES)
    model.load_state_dict(state, strict=True)
    model.to(dtype).eval().requires_grad_(False)
    model.optimise()
    return model


def relative(a: Any, b: Any) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.fixture(scope="module")
def reference() -> Any:
    pytest.importorskip("cosyvoice", reason="needs the parity group (cosyvoice2-eu)")
    model = oracle.language_model(TINY)
    with torch.no_grad():
        model.llm_decoder.weight.mul_(3)
        model.llm_decoder.bias[:20] += 8  # a few likely tokens, so that there are repeats
    return model


@pytest.fixture(scope="module")
def model(reference: Any) -> LanguageModel:
    return ours(reference)


def prompt(seed: int = 0) -> tuple[Any, Any, Any]:
    g = torch.Generator().manual_seed(seed)
    draw = lambda n, high: torch.randint(0, high, (n,), generator=g)  # noqa: E731
    return draw(7, SIZES.vocabulary), draw(11, SIZES.vocabulary), draw(30, SIZES.speech_tokens)


@torch.inference_mode()
def test_logits_of_prefill_and_every_step(reference: Any, model: LanguageModel) -> None:
    prompt_text, text, speech = prompt()
    embeddings = model.sequence(torch.cat((prompt_text, text)), speech)
    decoder = Decoder(model, slots=3, length=256, max_tokens=64)
    decoder.begin(1, torch.rand(64, 2))
    decoder.read(1, embeddings, 0, 128)
    seen: list[Any] = []
    hook = model.llm_decoder.register_forward_hook(lambda _m, _i, out: seen.append(out[1].clone()))
    cache, x = None, embeddings[None]
    for step in range(40):
        decoder.allow(torch.full((3,), step + 1))
        decoder.step(128)
        hidden, cache = reference.llm.forward_one_step(x, masks=None, cache=cache)
        expected = reference.llm_decoder(hidden[:, -1])[0]
        assert relative(seen[-1], expected) < 1e-5
        token = decoder.tokens(torch.zeros(3, dtype=torch.int64), step + 1)[1, -1]
        x = reference.speech_embedding.weight[token].reshape(1, 1, -1)
    hook.remove()


class Draws:
    """Stands in for the oracle's multinomial: inverts the cumulative weight at given numbers."""

    def __init__(self, uniform: Any) -> None:
        self.uniform, self.step, self.calls = uniform, 0, 0

    def __call__(self, weights: Any, n: int, replacement: bool = False) -> Any:
        u = self.uniform[self.step, self.calls]
        self.calls += 1
        cumulative = weights.cumsum(0)
        return (cumulative <= u * cumulative[-1]).sum().clamp(max=len(weights) - 1)[None]


@torch.inference_mode()
def test_tokens_with_equal_draws(
    reference: Any, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With repeats, which are drawn again from all other tokens as upstream's newest code does."""
    uniform = torch.from_numpy(sampling.draws(5, 0, 96))
    draws = Draws(uniform)
    monkeypatch.setattr(torch.Tensor, "multinomial", lambda w, n, replacement: draws(w, n))
    prompt_text, text, speech = prompt(1)
    decoder = Decoder(model, slots=2, length=256, max_tokens=96)
    decoder.begin(0, uniform)
    decoder.read(0, model.sequence(torch.cat((prompt_text, text)), speech), 0, 128)
    decoder.rule(0, quiet_until=96, mute=(True, False, False))
    repeated = 0
    out: list[int] = []
    cache, x = None, model.sequence(torch.cat((prompt_text, text)), speech)[None]
    s = SIZES.sampling
    for step in range(90):
        decoder.allow(torch.full((2,), step + 1))
        decoder.step(256)
        token = int(decoder.tokens(torch.zeros(2, dtype=torch.int64), step + 1)[0, -1])
        hidden, cache = reference.llm.forward_one_step(x, masks=None, cache=cache)
        logp = reference.llm_decoder(hidden[:, -1]).log_softmax(dim=-1)[0]
        draws.step, draws.calls = step, 0
        from cosyvoice.utils.common import nucleus_sampling, random_sampling

        expected = nucleus_sampling(logp, top_p=s.top_p, top_k=s.top_k)
        if (torch.tensor(out[-s.window :]) == expected).sum() >= s.window * s.tau:
            logp[expected] = -float("inf")
            expected = random_sampling(logp, out, s.top_k)
            repeated += 1
        assert token == int(expected)
        out.append(token)
        x = reference.speech_embedding.weight[token].reshape(1, 1, -1)
    assert repeated > 0, "the test has to see a repeat"


@torch.inference_mode()
def test_a_slot_does_not_know_of_its_company(model: LanguageModel) -> None:
    """Bit for bit, in any slot, whoever else speaks and however long they have spoken."""

    def speak(decoder: Decoder, slot: int, seed: int, tokens: int) -> list[int]:
        prompt_text, text, speech = prompt(seed)
        decoder.begin(slot, torch.from_numpy(sampling.draws(seed, 0, 128)))
        decoder.read(slot, model.sequence(torch.cat((prompt_text, text)), speech), 0, 128)
        limits = torch.zeros(4, dtype=torch.int64)
        limits[slot] = tokens
        decoder.allow(limits)
        return []

    alone = Decoder(model, slots=4, length=512, max_tokens=128)
    speak(alone, 0, 3, 60)
    for _ in range(60):
        alone.step(128)
    zero = torch.zeros(4, dtype=torch.int64)
    expected = alone.tokens(zero, 60)[0]
    kept_keys = alone.cache.keys[:, 0, :, :100].clone()

    crowd = Decoder(model, slots=4, length=512, max_tokens=128)
    for slot in (0, 1, 3):
        speak(crowd, slot, 10 + slot, 100)
        crowd.allow(torch.full((4,), 100))
        for _ in range(17):
            crowd.step(256)
    speak(crowd, 2, 3, 60)
    limits = torch.full((4,), 100)
    limits[2] = 60
    crowd.allow(limits)
    for _ in range(75):
        crowd.step(512)
    assert torch.equal(crowd.tokens(zero, 60)[2], expected)
    assert torch.equal(crowd.cache.keys[:, 2, :, :100], kept_keys)


@torch.inference_mode()
def test_a_stopped_slot_stays_as_it_is(model: LanguageModel) -> None:
    decoder = Decoder(model, slots=2, length=256, max_tokens=64)
    prompt_text, text, speech = prompt(4)
    decoder.begin(0, torch.from_numpy(sampling.draws(4, 0, 64)))
    decoder.read(0, model.sequence(torch.cat((prompt_text, text)), speech), 0, 128)
    decoder.rule(0, quiet_until=0, mute=(False,) * 3, fill_at=5)
    decoder.allow(torch.full((2,), 60))
    for _ in range(20):
        decoder.step(128)
    count, stopped, *tokens = decoder.tokens(torch.zeros(2, dtype=torch.int64), 20)[0].tolist()
    assert (count, stopped) == (6, 1)
    assert tokens[5] == SIZES.fill_token
    assert set(tokens[6:]) == {-1}


def test_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -9.0]]).repeat(20_000, 1)
    uniform = torch.from_numpy(sampling.draws(1, 0, 20_000))
    recent = torch.full((20_000, 10), -1)
    nothing = torch.zeros_like(logits, dtype=torch.bool)
    token = sampling.choose(logits, recent, uniform, nothing, SIZES.sampling)
    p = logits[0].softmax(0)[:2]
    p = p / p.sum()  # the nucleus of 0.8 holds two
    share = torch.bincount(token, minlength=5) / 20_000
    assert share[2:].sum() == 0
    assert abs(float(share[0] - p[0])) < 0.01


def test_what_is_forbidden_never_comes() -> None:
    logits = torch.tensor([[9.0, 0.0, 0.0]]).repeat(500, 1)
    uniform = torch.from_numpy(sampling.draws(2, 0, 500))
    forbidden = torch.tensor([[True, False, False]]).repeat(500, 1)
    recent = torch.full((500, 10), -1)
    token = sampling.choose(logits, recent, uniform, forbidden, SIZES.sampling)
    assert set(token.tolist()) == {1, 2}, "the nucleus held the forbidden token alone"


def test_draws_depend_on_seed_and_segment_alone() -> None:
    a = sampling.draws(7, 3, 100)
    assert np.array_equal(a[:40], sampling.draws(7, 3, 40))
    assert not np.array_equal(a, sampling.draws(7, 4, 100))
    assert not np.array_equal(a, sampling.draws(8, 3, 100))
    assert 0 <= a.min() <= a.max() < 1
