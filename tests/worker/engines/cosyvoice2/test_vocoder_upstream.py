"""Upstream's own streaming, chunk by chunk, and the bump at its seams that ours have not."""

import pytest

torch = pytest.importorskip("torch", reason="the cosyvoice2 engine needs torch")
pytest.importorskip("cosyvoice", reason="upstream's code is the reference")

from typing import Any

import numpy as np

from tests.worker.engines.cosyvoice2 import oracle
from tests.worker.engines.cosyvoice2 import vocoder_cases as cases
from voicefleet.worker.engines.cosyvoice2.hyperparameters import TINY
from voicefleet.worker.engines.cosyvoice2.vocoder.model import Vocoder
from voicefleet.worker.engines.cosyvoice2.vocoder.upstream import UpstreamStreaming
from voicefleet.worker.engines.cosyvoice2.vocoder.weight_norm import fold_weight_norm
from voicefleet.worker.engines.cosyvoice2.vocoder.windows import Windows

HOP = cases.HOP
CHUNKS = [50, 50, 100, 37]


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


class Draws:
    """The same noise in the same order for both."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(9)

    def __call__(self, samples: int) -> Any:
        return torch.randn(1, samples, 9, generator=self._generator)


class NoFlow:
    """Hands on the mel frames that stand for the tokens: the vocoder is what is compared."""

    token_mel_ratio = 1

    def __init__(self, mel: Any) -> None:
        self.mel = mel

    def inference(self, token: Any, **_: Any) -> Any:
        return self.mel[:, :, : token.shape[1]], None


def upstream_chunks(module: Any, mel: Any, chunks: list[int]) -> list[Any]:
    """Through upstream's own ``token2wav``, as its ``tts`` calls it."""
    from importlib import import_module

    empty = torch.zeros(1, 0)
    model = import_module("cosyvoice.cli.model").CosyVoice2Model(None, NoFlow(mel), module)
    model.device = torch.device("cpu")
    model.hift_cache_dict["one"] = None
    pieces: list[Any] = []
    offset = 0
    for index, frames in enumerate(chunks):
        final = index == len(chunks) - 1
        samples = model.token2wav(
            token=torch.zeros(1, offset + frames), prompt_token=empty, prompt_feat=empty,
            embedding=empty, token_offset=offset, uuid="one", stream=True, finalize=final,
        )  # fmt: skip
        pieces.append(samples.clone())
        offset += frames
    return pieces


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_each_chunk_equals_upstreams(monkeypatch: pytest.MonkeyPatch) -> None:
    module = oracle.vocoder(TINY)
    ours = Vocoder(TINY.vocoder).eval()
    ours.load_state_dict(fold_weight_norm(module.state_dict()))
    ours.optimise()
    mel = cases.mel(sum(CHUNKS))
    draws, zeros = Draws(), torch.zeros_like
    with monkeypatch.context() as patch:
        patch.setattr(
            torch,
            "randn_like",
            lambda like: draws(like.shape[1]) if like.shape[2] > 1 else zeros(like),
        )
        expected = upstream_chunks(module, mel, CHUNKS)
    streaming = UpstreamStreaming(ours, Draws())
    for index, (frames, piece) in enumerate(zip(mel.split(CHUNKS, dim=2), expected, strict=True)):
        samples = streaming.push(frames, final=index == len(CHUNKS) - 1)
        assert samples.shape == piece.shape
        assert cases.relative(samples, piece) < 1e-3
    assert sum(piece.shape[1] for piece in expected) == sum(CHUNKS) * HOP


def test_upstreams_seams_are_louder_and_ours_are_not() -> None:
    """A steady vowel, without noise: its loudness at the seams against that between them."""
    module = cases.vocoder("voiced")
    steady = cases.mel(1).expand(1, -1, 350).contiguous()
    silence = torch.zeros(1, 350 * HOP, 9)
    streaming = UpstreamStreaming(module, lambda samples: silence[:, :samples])
    chunks = [50] * 7
    pieces = [
        streaming.push(frames, final=index == 6)
        for index, frames in enumerate(steady.split(chunks, dim=2))
    ]
    theirs = torch.cat(pieces, dim=1)[0]
    assert theirs.shape[0] == 350 * HOP
    module.get_buffer("_noise").zero_()
    ours, _ = cases.in_windows(module, steady, 0, Windows(cases.SIZES), list(range(50, 350, 50)))

    def louder(samples: Any, first: int, last: int) -> float:
        """Of the frames ``first`` to ``last`` after each block border, against the rest's."""
        frames = samples[50 * HOP : 300 * HOP].view(5, 50, HOP).square().mean(dim=(0, 2)).sqrt()
        inside = torch.zeros(50, dtype=torch.bool)
        inside[torch.arange(first, last) % 50] = True
        return float(frames[inside].mean() / frames[~inside].mean())

    theirs_ratio = louder(theirs, -8, 0)  # the faded frames
    ours_ratio = louder(ours, -15, -7)  # around the border of two windows
    assert abs(ours_ratio - 1) < 0.005
    assert theirs_ratio > 1.04
    assert np.isclose(float(np.hamming(7680)[:3840].max() + np.hamming(7680)[3840:].min()), 1.08)
