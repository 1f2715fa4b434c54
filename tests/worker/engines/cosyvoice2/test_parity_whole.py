"""The whole engine: from text to samples against upstream, and chunked against all at once."""

import ast
import os
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch", reason="needs the cosyvoice extra (torch)")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.worker.engines.cosyvoice2 import oracle
from tests.worker.engines.cosyvoice2.driving import SENTENCES, Driver, segments
from voicefleet.worker.engines import cosyvoice2
from voicefleet.worker.engines.cosyvoice2.hyperparameters import TINY, Hyperparameters
from voicefleet.worker.engines.cosyvoice2.lm import sampling
from voicefleet.worker.engines.cosyvoice2.pack import checkpoint, model_yaml, random_pack
from voicefleet.worker.engines.cosyvoice2.turn_sequence import Utterance
from voicefleet.worker.engines.cosyvoice2.vocoder.noise import noise_offset, read_noise
from voicefleet.worker.engines.cosyvoice2.voices import files as voice_files
from voicefleet.worker.engines.cosyvoice2.voices import voice
from voicefleet.worker.engines.hosting.messages import Spoken

LONG = "The sun had long since set when they came to the old house by the river at last."
SEED = 7
FULL_SIZE = os.environ.get("VOICEFLEET_FULL_SIZE") == "1"


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=["tiny", pytest.param("full", marks=pytest.mark.long)])
def pack(request: Any, tiny_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack that ends utterances where its model does, with prompts of several lengths."""
    directory = tmp_path_factory.mktemp("packs") / "cosyvoice2" / request.param
    if request.param == "full":
        if not FULL_SIZE:
            pytest.skip("full size: set VOICEFLEET_FULL_SIZE=1")
        random_pack.write(directory, Hyperparameters(), 0, "cosyvoice2-full")
    else:
        shutil.copytree(tiny_pack, directory)
    metadata = yaml.safe_load((directory / "metadata.yaml").read_text())
    (directory / "metadata.yaml").write_text(yaml.safe_dump(metadata | {"synthetic": False}))
    whole = voice_files.voices_of(directory)["random"]
    for tokens in (12, 41, 61):
        name = f"prompt{tokens}"
        cut = replace(
            whole,
            name=name,
            speech_tokens=whole.speech_tokens[:tokens],
            flow_tokens=whole.flow_tokens[:tokens],
            mel=whole.mel[: 2 * tokens],
        )
        voice_files.save(cut, voice.path_of(directory, name))
    return directory


def heard(driver: Driver, turn: int, text: str, **spec: Any) -> tuple[np.ndarray, Utterance]:
    """One segment that is one utterance: its samples, and what was decoded for it."""
    driver.open(turn, segments(text), **{"seed": SEED, **spec})
    sequence, found = driver.core._sequences[turn], set[Utterance]()
    for _ in range(10_000):
        found |= set(sequence.speaking)
        driver.core.consumed(turn, sequence.produced)
        if turn in driver.ended:
            break
        driver.core.step()
    assert isinstance(driver.ended[turn], Spoken), driver.ended
    (utterance,) = found
    return driver.heard(turn), utterance


def relative(a: Any, b: Any) -> float:
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    assert a.shape == b.shape
    return float((a - b).norm() / b.norm())


# Upstream.


class Draws:
    """Upstream's multinomial: inverts the cumulative weight at the engine's own numbers."""

    def __init__(self, tokens: int) -> None:
        self.uniform = torch.from_numpy(sampling.draws(SEED, 0, tokens))
        self.step = self.calls = 0

    def __call__(self, weights: Any, n: int, replacement: bool = False) -> Any:
        u = self.uniform[self.step, self.calls]
        self.calls += 1
        cumulative = weights.cumsum(0)
        return (cumulative <= u * cumulative[-1]).sum().clamp(max=len(weights) - 1)[None]


class Upstream:
    """Upstream's modules with the pack's weights, and its way through them.

    The rules of its newest code where the package's are older: an end that may not come yet is
    left out before sampling, a repeat when it is drawn again, and hops double from 25 to 100.
    """

    def __init__(self, pack: Path) -> None:
        pytest.importorskip("cosyvoice", reason="needs the parity group (cosyvoice2-eu)")
        self.sizes = model_yaml.read(pack / "cosyvoice2.yaml")
        parts = {
            "llm.pt": oracle.language_model(self.sizes),
            "flow.pt": oracle.flow(self.sizes),
            "hift.pt": oracle.vocoder(self.sizes),
        }
        for file, module in parts.items():
            module.load_state_dict(torch.load(pack / file, weights_only=True), strict=True)
        self.llm, flow, hift = parts.values()
        self.model = import_module("cosyvoice.cli.model").CosyVoice2Model(self.llm, flow, hift)
        self.model.device = torch.device("cpu")

    def tokens(self, inputs: dict[str, Any], patch: pytest.MonkeyPatch) -> list[int]:
        common = import_module("cosyvoice.utils.common")
        rules, end = self.sizes.language_model.sampling, self.sizes.language_model.end_token
        draws = Draws(4000)
        patch.setattr(torch.Tensor, "multinomial", lambda w, n, replacement: draws(w, n))

        def sampling_ids(scores: Any, decoded: list[int], top_k: int, ignore_eos: bool) -> Any:
            draws.step, draws.calls = len(decoded), 0
            if ignore_eos:
                scores[end] = -float("inf")
            token = common.nucleus_sampling(scores, top_p=rules.top_p, top_k=top_k)
            recent = torch.tensor(decoded[-rules.window :])
            if (recent == token).sum() >= rules.window * rules.tau:
                scores[token] = -float("inf")
                token = common.random_sampling(scores, decoded, top_k)
            return token

        patch.setattr(self.llm, "sampling_ids", sampling_ids)
        none = torch.zeros(1, 0, dtype=torch.int32)
        text, prompt = inputs["text"], inputs.get("prompt_text", none)
        speech = inputs.get("llm_prompt_speech_token", none)
        lengths = (torch.tensor([part.shape[1]]) for part in (text, prompt, speech))
        text_len, prompt_len, speech_len = lengths
        spoken = self.llm.inference(
            text, text_len, prompt, prompt_len, speech, speech_len, torch.zeros(0, 192)
        )
        return [int(token) for token in spoken]

    def speech(
        self, tokens: list[int], inputs: dict[str, Any], stream: bool, patch: pytest.MonkeyPatch
    ) -> Any:
        """Its samples ``[n]``, chunk by chunk as its ``tts`` makes them, or in one pass."""
        noise = torch.Generator().manual_seed(noise_offset(SEED, 0))
        zeros = torch.zeros_like
        patch.setattr(
            torch,
            "randn_like",
            lambda like: (
                torch.randn(like.shape, generator=noise) if like.shape[2] > 1 else zeros(like)
            ),
        )
        prompt = inputs.get("flow_prompt_speech_token", torch.zeros(1, 0, dtype=torch.int32))
        told = {
            "prompt_token": prompt,
            "prompt_feat": inputs.get("prompt_speech_feat", torch.zeros(1, 0, 80)),
            "embedding": inputs["flow_embedding"],
            "uuid": "one",
        }
        self.model.hift_cache_dict["one"] = None
        pieces: list[Any] = []
        hop, offset = 25, 0
        while stream:
            ahead = hop + (-prompt.shape[1] % 25 if offset == 0 else 0)
            if len(tokens) - offset < ahead + 3:
                break
            some = torch.tensor([tokens[: offset + ahead + 3]])
            pieces.append(
                self.model.token2wav(token=some, token_offset=offset, stream=True, **told)
            )
            offset, hop = offset + ahead, min(100, 2 * hop)
        everything = torch.tensor([tokens])
        pieces.append(
            self.model.token2wav(token=everything, token_offset=offset, finalize=True, **told)
        )
        return torch.cat(pieces, dim=1)[0]


def upstream_inputs(
    upstream: Upstream, own: voice.Voice, text: list[int], prompt: list[int], mode: str
) -> dict[str, Any]:
    """What upstream's frontend hands its model, from the same voice and the same text tokens."""
    row = lambda tokens: torch.tensor([list(tokens)], dtype=torch.int32)  # noqa: E731
    embedding = torch.from_numpy(own.speaker)[None]
    inputs = {"text": row(text), "flow_embedding": embedding}
    if mode == "sft":
        return inputs
    inputs |= {
        "prompt_text": row(prompt),
        "llm_prompt_speech_token": row(own.speech_tokens),
        "flow_prompt_speech_token": row(own.flow_tokens),
        "prompt_speech_feat": torch.from_numpy(own.mel)[None],
    }
    # frontend_cross_lingual and frontend_instruct2 take away what the model is not to continue.
    dropped = {"cross_lingual": ("prompt_text", "llm_prompt_speech_token")}
    for name in dropped.get(mode, ("llm_prompt_speech_token",) if mode == "instruct" else ()):
        del inputs[name]
    return inputs


@pytest.fixture(scope="module")
def upstream(pack: Path) -> Upstream:
    return Upstream(pack)


@pytest.fixture(scope="module")
def exact(pack: Path) -> Driver:
    return Driver(pack, upstream_exact=True)


@pytest.mark.timeout(1800 if FULL_SIZE else 120)
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("name", "mode", "text"),
    [
        ("random", "zero_shot", LONG),
        ("prompt41", "zero_shot", SENTENCES[0]),
        ("prompt12", "zero_shot", SENTENCES[2]),
        ("prompt61", "cross_lingual", SENTENCES[0]),
        ("random", "instruct", SENTENCES[0]),
        ("default", "sft", SENTENCES[2]),
    ],
)
def test_from_text_to_samples(
    upstream: Upstream, exact: Driver, pack: Path, name: str, mode: str, text: str
) -> None:
    """Tokens equal, and every chunk up to upstream's last full pass."""
    instruct = "Speak softly." if mode == "instruct" else None
    turn = len(exact.ended) + 1
    found, utterance = heard(exact, turn, text, voice=name, mode=mode, instruct=instruct)
    loaded = exact.core._runner
    own = loaded.voices[name]
    prompt = loaded.frontend.prompt(own.prompt_text)
    if instruct is not None:
        prompt = loaded.frontend.instruction(instruct)
    (tokens,) = loaded.frontend.utterances(text)
    inputs = upstream_inputs(upstream, own, tokens, prompt, mode)
    with pytest.MonkeyPatch.context() as patch:
        spoken = upstream.tokens(inputs, patch)
    assert utterance.tokens == spoken
    assert 2 * len(tokens) <= len(spoken) <= 20 * len(tokens)
    if text == LONG:
        assert len(spoken) > 25 + 50 + 3, "the test has to see a hop that doubled"
    with pytest.MonkeyPatch.context() as patch:
        expected = upstream.speech(spoken, inputs, True, patch)
    assert len(expected) == len(spoken) * loaded.sizes.samples_per_token
    assert relative(found, expected) < 1e-3


@pytest.mark.timeout(1800 if FULL_SIZE else 120)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_all_at_once_without_streaming(upstream: Upstream, pack: Path) -> None:
    sizes = upstream.sizes
    model = checkpoint.load(pack, sizes, torch.float32, torch.device("cpu"))
    own = voice_files.voices_of(pack)["prompt41"]
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, sizes.flow.vocabulary, (70,), generator=generator).tolist()
    inputs = upstream_inputs(upstream, own, [], [], "zero_shot")
    with pytest.MonkeyPatch.context() as patch:
        expected = upstream.speech(tokens, inputs, False, patch)
    noise = torch.Generator().manual_seed(noise_offset(SEED, 0))
    mel = mel_at_once(model, own, tokens, streaming=False)
    width = sizes.vocoder.harmonics + 1
    drawn = torch.randn(1, mel.shape[2] * sizes.vocoder.hop, width, generator=noise)
    assert relative(model.vocoder.waveform(mel, drawn)[0], expected) < 1e-3


# Our own way.


def mel_at_once(
    model: checkpoint.Model, own: voice.Voice, tokens: list[int], streaming: bool = True
) -> Any:
    """``[1, bands, frames]`` of the utterance alone."""
    everything = torch.tensor([[*own.flow_tokens.tolist(), *tokens]])
    mel = model.flow.render(
        everything,
        torch.tensor([everything.shape[1]]),
        torch.from_numpy(own.mel)[None],
        torch.from_numpy(own.speaker)[None],
        streaming=streaming,
        final=True,
    )
    return mel[:, len(own.mel) :].transpose(1, 2)


def at_once(model: checkpoint.Model, own: voice.Voice, tokens: list[int], number: int = 0) -> Any:
    """The utterance's samples ``[n]``, rendered in one piece."""
    mel = mel_at_once(model, own, tokens)
    sizes = model.vocoder.sizes
    offset, start = torch.tensor([noise_offset(SEED, number)]), torch.tensor([0])
    noise = read_noise(model.vocoder.get_buffer("_noise"), offset, start, mel.shape[2] * sizes.hop)
    return model.vocoder.waveform(mel, noise)[0]


@pytest.fixture(scope="module")
def tiny(tiny_pack: Path) -> checkpoint.Model:
    return checkpoint.load(tiny_pack, TINY, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def drivers() -> dict[int, Driver]:
    """By ``first_chunk_tokens``, made when first asked for."""
    return {}


@settings(
    max_examples=14, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    text=st.integers(1, 75).map(lambda n: LONG[:n] + "a"),
    first=st.sampled_from([5, 11, 15, 24, 25]),
    prompt=st.integers(0, 75),
    seed=st.just(SEED),
)
def test_in_chunks_as_at_once(
    tiny: checkpoint.Model,
    tiny_pack: Path,
    drivers: dict[int, Driver],
    text: str,
    first: int,
    prompt: int,
    seed: int,
) -> None:
    """Whatever the text's length, the prompt's, and where the first chunk ends.

    Without oneDNN, whose convolutions take another algorithm from some length on: a padded window
    has that length, and its utterance rendered by itself may not (2e-5 between the two).
    """
    if first not in drivers:
        drivers[first] = Driver(tiny_pack, slots=1, first_chunk_tokens=first)
    driver = drivers[first]
    loaded = driver.core._runner
    whole = voice_files.voices_of(tiny_pack)["random"]
    own = voice.aligned(
        replace(
            whole,
            speech_tokens=whole.speech_tokens[:prompt],
            flow_tokens=whole.flow_tokens[:prompt],
            mel=whole.mel[: 2 * prompt],
        ),
        first,
    )
    loaded.voices["random"] = loaded.speakers._voices["random"] = own  # type: ignore[index]
    spent = loaded.speakers._kept.pop("random", None)
    if spent is not None:
        loaded.audio._renderer.release(spent.flow_prompt)
    turn = len(driver.ended) + 1
    with torch.backends.mkldnn.flags(enabled=False):
        found, utterance = heard(driver, turn, text)
        expected = at_once(tiny, own, utterance.tokens)
    assert relative(found, expected) <= 1e-5


def test_each_utterance_of_a_long_turn(tiny: checkpoint.Model, tiny_pack: Path) -> None:
    """Segments follow one another with the noise and the phase of their own."""
    driver = Driver(tiny_pack, slots=1)
    driver.open(1, segments(*SENTENCES), seed=SEED)
    sequence, seen = driver.core._sequences[1], dict[int, Utterance]()
    while 1 not in driver.ended:
        seen |= {one.number: one for one in sequence.speaking}
        driver.core.consumed(1, sequence.produced)
        driver.core.step()
    own = driver.core._runner.voices["random"]
    expected = [at_once(tiny, own, one.tokens, number) for number, one in sorted(seen.items())]
    assert sorted(seen) == [0, 1000, 2000]
    assert relative(driver.heard(1), torch.cat(expected)) <= 1e-5


# Upstream's defects, which ours has not.


def seams(driver: Driver, tokens: int, samples: int) -> list[int]:
    """Where one chunk's samples end and the next one's begin."""
    chunking = driver.core._runner.audio.chunking(driver.core._runner.speakers.acquire("random"))
    ends = [chunking.end(n) * TINY.samples_per_token for n in range(2 + tokens // 25)]
    return [end for end in ends if 0 < end < samples]


def test_seams_cannot_be_heard(tiny: checkpoint.Model, tiny_pack: Path) -> None:
    """Upstream is up to 8 % too loud over 3840 samples around each, and its noise is new there."""
    driver = Driver(tiny_pack, slots=1)
    found, utterance = heard(driver, 1, LONG)
    expected = at_once(tiny, driver.core._runner.voices["random"], utterance.tokens).numpy()
    ends = seams(driver, len(utterance.tokens), len(found))
    assert len(ends) > 4
    for end in ends:
        around = slice(max(0, end - 4 * 3840), end + 3840)
        loudness = np.linalg.norm(found[around]) / np.linalg.norm(expected[around])
        assert abs(loudness - 1) < 1e-4
        assert np.abs(found[around] - expected[around]).max() < 1e-4 * np.abs(expected).max()


def test_the_last_40_ms_are_no_noisier(tiny: checkpoint.Model, tiny_pack: Path) -> None:
    driver = Driver(tiny_pack, slots=1)
    last = round(0.040 * TINY.sample_rate)
    for turn, text in enumerate((*SENTENCES, LONG), start=1):
        found, utterance = heard(driver, turn, text)
        expected = at_once(tiny, driver.core._runner.voices["random"], utterance.tokens).numpy()
        assert len(found) == len(expected)
        assert relative(found[-last:], expected[-last:]) < 1e-4


def test_the_first_chunk_is_as_early_in_every_turn(pack: Path) -> None:
    """Upstream's hop stays doubled: its second request begins after 100 tokens and more."""
    for options in ({}, {"upstream_exact": True}):
        driver = Driver(pack, slots=1, **options)
        firsts: list[int] = []
        for turn in (1, 2, 3):
            driver.open(turn, segments(SENTENCES[0]), seed=turn)
            while not driver.audio.get(turn):
                driver.core.step()
            (utterance,) = driver.core._sequences[turn].speaking
            firsts.append(utterance.rendered)
            driver.run(turn)
        assert len(set(firsts)) == 1
        assert firsts[0] <= 25


def test_the_phase_does_not_drift(tiny: checkpoint.Model) -> None:
    """After minutes it is what exact arithmetic says; in float32 it would be off by a quarter."""
    source = tiny.vocoder.m_source
    frames, rate, hop = 5 * 60 * 50, TINY.sample_rate, TINY.vocoder.hop
    from voicefleet.worker.engines.cosyvoice2.vocoder.source import Cursor

    f0 = torch.full((1, frames), 210.123456789, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.int64)
    end = torch.tensor([frames])
    _, carried = source._phase(f0 / rate, Cursor(zero, zero, end, zero.double()))
    exact = (210.123456789 * frames * hop / rate) % 1.0
    assert abs(float(carried) - exact) < 1e-6
    steps = torch.full((frames,), 210.123456789 * hop / rate, dtype=torch.float32)
    assert abs(float(steps.cumsum(0)[-1] % 1.0) - exact) > 1e-3, "as float32 would have it"


def test_nothing_in_the_engine_polls_or_empties_caches_for_a_request() -> None:
    """No sleeping; the allocator's cache is emptied where memory ran out and nowhere else."""
    emptied: list[str] = []
    for path in Path(cosyvoice2.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                calls = {
                    part.attr if isinstance(part, ast.Attribute) else getattr(part, "id", "")
                    for call in ast.walk(node)
                    if isinstance(call, ast.Call)
                    for part in [call.func]
                }
                assert "sleep" not in calls, f"{path.name}: {node.name}"
                emptied += [node.name] * ("empty_cache" in calls)
    assert emptied == ["shrink"]
