"""The language model against upstream's, and slots that do not know of each other."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the cosyvoice extra (torch)")

from tests.worker.engines.cosyvoice2 import oracle
from voicefleet.worker.engines.cosyvoice2.graphs import Graphs
from voicefleet.worker.engines.cosyvoice2.hyperparameters import TINY
from voicefleet.worker.engines.cosyvoice2.lm import sampling
from voicefleet.worker.engines.cosyvoice2.lm.decoding import Decoder
from voicefleet.worker.engines.cosyvoice2.lm.language_model import LanguageModel

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


def decoder_of(model: LanguageModel, slots: int = 3) -> Decoder:
    return Decoder(model, slots, length=512, max_tokens=128, graphs=Graphs(enabled=False))


def begin(decoder: Decoder, slot: int, seed: int) -> Any:
    """An utterance of its own for each seed; returns what it begins with."""
    prompt_text, text, speech = prompt(seed)
    embeddings = decoder.model.prompt_embeddings(torch.cat((prompt_text, text)), speech)
    decoder.begin(slot, sampling.draws(seed, 0, decoder.max_tokens))
    decoder.prefill(slot, embeddings)
    return embeddings


@torch.inference_mode()
def test_logits_of_prefill_and_every_step(reference: Any, model: LanguageModel) -> None:
    decoder = decoder_of(model)
    x = begin(decoder, 1, 0)[None]
    seen: list[Any] = []
    hook = model.llm_decoder.register_forward_hook(lambda _m, _i, out: seen.append(out[1].clone()))
    cache = None
    for step in range(40):
        decoder.multi_step({1: step + 1}, 1)
        hidden, cache = reference.llm.forward_one_step(x, masks=None, cache=cache)
        expected = reference.llm_decoder(hidden[:, -1])[0]
        assert relative(seen[-1], expected) < 1e-5
        ((token,), _) = decoder.collect()[1]
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
    from cosyvoice.utils.common import nucleus_sampling, random_sampling

    decoder = decoder_of(model)
    draws = Draws(torch.from_numpy(sampling.draws(5, 0, 128)))
    monkeypatch.setattr(torch.Tensor, "multinomial", lambda w, n, replacement: draws(w, n))
    x = begin(decoder, 0, 5)[None]
    decoder.constrain(0, min_tokens=128, banned=(True, False, False))
    repeated = 0
    out: list[int] = []
    cache = None
    s = SIZES.sampling
    for step in range(90):
        decoder.multi_step({0: step + 1}, 1)
        ((token,), _) = decoder.collect()[0]
        hidden, cache = reference.llm.forward_one_step(x, masks=None, cache=cache)
        logp = reference.llm_decoder(hidden[:, -1]).log_softmax(dim=-1)[0]
        draws.step, draws.calls = step, 0
        expected = nucleus_sampling(logp, top_p=s.top_p, top_k=s.top_k)
        if (torch.tensor(out[-s.window :]) == expected).sum() >= s.window * s.tau:
            logp[expected] = -float("inf")
            expected = random_sampling(logp, out, s.top_k)
            repeated += 1
        assert token == int(expected)
        out.append(token)
        x = reference.speech_embedding.weight[token].reshape(1, 1, -1)
    assert repeated > 0, "the test has to see a repeat"


def run(decoder: Decoder, limits: dict[int, int]) -> dict[int, list[int]]:
    """Decode in bursts until every slot stands at its limit."""
    tokens: dict[int, list[int]] = {slot: [] for slot in limits}
    while True:
        decoder.multi_step(limits, 7)
        news = decoder.collect()
        if not news:
            return tokens
        for slot, (new, _) in news.items():
            tokens[slot] += new


@torch.inference_mode()
def test_a_slot_does_not_know_of_its_company(model: LanguageModel) -> None:
    """Bit for bit, in any slot, whoever else speaks and however long they have spoken."""
    alone = decoder_of(model, 4)
    begin(alone, 0, 3)
    expected = run(alone, {0: 60})[0]
    keys = alone.cache.keys[:, 0, :, :100].clone()

    crowd = decoder_of(model, 4)
    for slot in (0, 1, 3):
        begin(crowd, slot, 10 + slot)
        run(crowd, {slot: 50})
    begin(crowd, 2, 3)
    crowd.constrain(3, min_tokens=0, banned=(False,) * 3)
    assert run(crowd, {0: 120, 1: 90, 2: 60})[2] == expected
    assert torch.equal(crowd.cache.keys[:, 2, :, :100], keys)


@torch.inference_mode()
def test_a_long_company_changes_nothing(model: LanguageModel) -> None:
    """Where attention has to look farther because of another slot."""
    alone, crowd = decoder_of(model, 2), decoder_of(model, 2)
    begin(alone, 0, 3)
    begin(crowd, 0, 3)
    long = model.text(torch.arange(300))
    crowd.begin(1, sampling.draws(9, 0, 128))
    crowd.prefill(1, long)
    assert run(crowd, {0: 60, 1: 100})[0] == run(alone, {0: 60})[0]


@torch.inference_mode()
def test_a_stopped_slot_stands_still(model: LanguageModel) -> None:
    decoder = decoder_of(model)
    begin(decoder, 0, 4)
    decoder.constrain(0, min_tokens=0, banned=(False,) * 3, fill_at=5)
    decoder.multi_step({0: 60}, 12)
    tokens, stopped = decoder.collect()[0]
    assert stopped
    assert len(tokens) == 6
    assert tokens[5] == SIZES.fill_token
    decoder.multi_step({0: 60}, 12)
    assert decoder.collect() == {}


@torch.inference_mode()
def test_more_can_be_read_in_the_middle(reference: Any, model: LanguageModel) -> None:
    """Streamed text: what is read later continues the sequence."""
    decoder = decoder_of(model)
    x = begin(decoder, 2, 6)
    decoder.constrain(2, min_tokens=0, banned=(False,) * 3, fill_at=4)
    decoder.multi_step({2: 60}, 8)
    tokens, _ = decoder.collect()[2]
    more = model.text(torch.arange(9))
    decoder.prefill(2, more)
    seen: list[Any] = []
    hook = model.llm_decoder.register_forward_hook(lambda _m, _i, out: seen.append(out[2].clone()))
    decoder.multi_step({2: 6}, 1)
    hook.remove()
    whole = torch.cat((x, model.speech(torch.tensor(tokens[:-1])), more))
    hidden, _ = reference.llm.forward_one_step(whole[None], masks=None)
    assert relative(seen[-1], reference.llm_decoder(hidden[:, -1])[0]) < 1e-5


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
