"""The vocoder computes what upstream's does, stage by stage."""

import pytest

torch = pytest.importorskip("torch", reason="the cosyvoice2 engine needs torch")
pytest.importorskip("cosyvoice", reason="upstream's code is the reference")

import os
from typing import Any

from tests.worker.engines.cosyvoice2 import oracle
from tests.worker.engines.cosyvoice2.vocoder_cases import cursor, relative
from voicefleet.worker.engines.cosyvoice2.hyperparameters import TINY, Hyperparameters
from voicefleet.worker.engines.cosyvoice2.vocoder.model import Vocoder
from voicefleet.worker.engines.cosyvoice2.vocoder.spectrum import InverseSpectrum, Spectrum
from voicefleet.worker.engines.cosyvoice2.vocoder.weight_norm import fold_weight_norm

FULL_SIZE = pytest.param(
    Hyperparameters(),
    marks=pytest.mark.skipif(
        not os.environ.get("VOICEFLEET_FULL_SIZE"), reason="VOICEFLEET_FULL_SIZE=1 runs it"
    ),
    id="full",
)
MODELS = [pytest.param(TINY, id="tiny"), FULL_SIZE]


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def ours_of(upstream: Any, sizes: Hyperparameters) -> Vocoder:
    ours = Vocoder(sizes.vocoder).eval()
    ours.load_state_dict(fold_weight_norm(upstream.state_dict()))
    ours.optimise()
    return ours


def inputs(frames: int, sizes: Hyperparameters) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(2)
    mel = torch.randn(1, sizes.vocoder.mel_bands, frames, generator=generator) * 2 - 4
    noise = torch.randn(1, frames * sizes.vocoder.hop, 9, generator=generator)
    return mel, noise


def give_noise(patch: pytest.MonkeyPatch, noise: Any) -> None:
    """Upstream draws noise for each harmonic, and then some that it never uses."""
    zeros = torch.zeros_like
    patch.setattr(
        torch,
        "randn_like",
        lambda like: noise[:, : like.shape[1]].to(like.dtype) if like.shape[2] > 1 else zeros(like),
    )


def in_double(upstream: Any) -> Any:
    upstream.double()
    upstream.stft_window = upstream.stft_window.double()
    return upstream


@pytest.mark.parametrize("sizes", MODELS)
@pytest.mark.parametrize("f0_hz", [150.0, 0.0, 10.0])
@pytest.mark.parametrize("frames", [1, 40])
def test_one_rendering_equals_upstreams(
    sizes: Hyperparameters, f0_hz: float, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = oracle.vocoder(sizes, f0_hz=f0_hz)
    ours = ours_of(upstream, sizes)
    mel, noise = inputs(frames, sizes)
    give_noise(monkeypatch, noise)
    samples, source = upstream.inference(mel)
    f0 = ours.f0_predictor(mel)
    assert relative(f0, upstream.f0_predictor(mel)) < 1e-5
    zero = torch.zeros(1, dtype=torch.float64)
    our_source, _ = ours.m_source(f0, noise, cursor(0, 0, 0, zero))
    # Upstream's phase is thousands of radians in float32: to its own exactness, and no further.
    assert relative(our_source, source) < 2e-4
    assert relative(ours.waveform(mel, noise), samples) < 1e-3
    assert relative(ours.decode(mel, source), samples) < 1e-5
    exact_samples, exact_source = in_double(upstream).inference(mel.double())
    assert relative(our_source, exact_source) < 1e-5
    assert relative(ours.waveform(mel, noise), exact_samples) < 1e-5
    assert samples.shape == (1, frames * sizes.vocoder.hop)


def test_after_twenty_seconds_ours_is_still_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = oracle.vocoder(TINY)
    ours = ours_of(upstream, TINY)
    mel, noise = inputs(1000, TINY)
    give_noise(monkeypatch, noise)
    single = upstream.inference(mel)[0][0, -24_000:]
    exact = in_double(upstream).inference(mel.double())[0][0, -24_000:]
    assert relative(ours.waveform(mel, noise)[0, -24_000:], exact) < 1e-5
    assert relative(single, exact) > 1e-4  # upstream's defect


def test_names_are_upstreams_with_the_weight_norm_folded() -> None:
    upstream = oracle.vocoder(TINY)
    state = upstream.state_dict()
    folded = fold_weight_norm(state)
    with torch.device("meta"):
        ours = Vocoder(TINY.vocoder)
    layout = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert layout == {name: tensor.shape for name, tensor in folded.items()}
    assert relative(folded["ups.1.weight"], upstream.ups[1].weight) < 1e-7
    old = {
        "generator."
        + name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in state.items()
    }
    refolded = fold_weight_norm(old)
    assert refolded.keys() == folded.keys()
    assert all(torch.equal(refolded[name], folded[name]) for name in folded)
    ours.load_state_dict(folded, assign=True)
    ours.optimise()
    mel, noise = inputs(5, TINY)
    assert torch.equal(ours.waveform(mel, noise), ours_of(upstream, TINY).waveform(mel, noise))


@pytest.mark.parametrize("missing", ["original0", "original1"])
def test_half_a_pair_is_an_error(missing: str) -> None:
    state = oracle.vocoder(TINY).state_dict()
    name = f"conv_pre.parametrizations.weight.{missing}"
    del state[name]
    with pytest.raises(KeyError, match=name):
        fold_weight_norm(state)


def test_optimise_twice_is_no_harm() -> None:
    ours = ours_of(oracle.vocoder(TINY), TINY)
    mel, noise = inputs(5, TINY)
    names, before = list(ours.state_dict()), ours.waveform(mel, noise)
    ours.optimise()
    assert torch.equal(before, ours.waveform(mel, noise))
    assert names == list(ours.state_dict())


@pytest.mark.parametrize(("size", "hop"), [(16, 4), (24, 8), (32, 8)])
def test_transforms_equal_torchs(size: int, hop: int) -> None:
    torch.manual_seed(0)
    window = torch.hann_window(size, dtype=torch.float64)
    samples = torch.randn(2, 1, 64 * hop)
    bins = torch.stft(
        samples[:, 0].double(), size, hop, size, window, center=True, return_complex=True
    )
    ours = Spectrum(size, hop)(samples)
    assert relative(ours, torch.cat([bins.real, bins.imag], dim=1)) < 1e-6
    other = torch.randn(2, size + 2, 65)
    real, imaginary = other.double().chunk(2, dim=1)
    expected = torch.istft(torch.complex(real, imaginary), size, hop, size, window)
    assert relative(InverseSpectrum(size, hop)(other), expected) < 1e-6


def test_a_transform_that_cannot_be_inverted_so_is_refused() -> None:
    with pytest.raises(ValueError, match="16 cannot advance by 8"):
        InverseSpectrum(16, 8)
