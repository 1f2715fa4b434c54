"""On a CUDA device: graphs, precision, company and memory. What a CPU cannot show."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the cosyvoice extra (torch)")

from tests.worker.engines.cosyvoice2.driving import SENTENCES, Driver, segments
from tests.worker.engines.cosyvoice2.flow_cases import relative
from voicefleet.worker.engines.cosyvoice2.flow.blocks import BlockRenderer
from voicefleet.worker.engines.cosyvoice2.graphs import Graphs
from voicefleet.worker.engines.cosyvoice2.hyperparameters import TINY
from voicefleet.worker.engines.cosyvoice2.lm import sampling
from voicefleet.worker.engines.cosyvoice2.lm.decoding import Decoder
from voicefleet.worker.engines.cosyvoice2.pack import checkpoint
from voicefleet.worker.engines.cosyvoice2.pack.checkpoint import Model
from voicefleet.worker.engines.cosyvoice2.rendering import BlockStage
from voicefleet.worker.engines.cosyvoice2.vocoding import WINDOW_LENGTHS, VocoderStage

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TOKENS = 64
MIB = 2**20


@pytest.fixture(autouse=True)
def without_tf32() -> Iterator[None]:
    """Products of full precision, so that what differs is ours."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def load(pack: Path, device: str = "cuda", dtype: Any = torch.float32) -> Model:
    return checkpoint.load(pack, TINY, dtype, torch.device(device))


def decode(model: Model, seeds: list[int], *, graphs: bool, slots: int = 16) -> dict[int, Any]:
    """Tokens of an utterance for each seed, decoded side by side."""
    decoder = Decoder(model.language_model, slots, 512, TOKENS, Graphs(enabled=graphs))
    decoder.warm_up(512)
    for slot, seed in enumerate(seeds):
        g = torch.Generator().manual_seed(seed)
        text = torch.randint(0, TINY.language_model.vocabulary, (9 + seed % 5,), generator=g)
        speech = torch.randint(0, TINY.language_model.speech_tokens, (25,), generator=g)
        decoder.begin(slot, sampling.draws(seed, 0, TOKENS))
        decoder.constrain(slot, min_tokens=TOKENS, banned=(True, True, True))
        decoder.prefill(slot, decoder.model.prompt_embeddings(text.cuda(), speech.cuda()))
    told: dict[int, list[int]] = {seed: [] for seed in seeds}
    for done in range(0, TOKENS, 8):
        decoder.multi_step(dict.fromkeys(range(len(seeds)), done + 8), 8)
        for slot, (tokens, _) in decoder.collect().items():
            told[seeds[slot]] += tokens
    assert all(len(tokens) == TOKENS for tokens in told.values())
    return told


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoding_from_graphs_is_decoding(tiny_pack: Path, dtype: Any) -> None:
    model = load(tiny_pack, dtype=dtype)
    seeds = [3, 4, 5]
    assert decode(model, seeds, graphs=True) == decode(model, seeds, graphs=False)


@torch.inference_mode()
def test_tokens_do_not_depend_on_company(tiny_pack: Path) -> None:
    model = load(tiny_pack, dtype=torch.bfloat16)
    together = decode(model, list(range(16)), graphs=True)
    assert len({tuple(tokens) for tokens in together.values()}) == 16
    for seed in (0, 7, 15):
        assert decode(model, [seed], graphs=True)[seed] == together[seed]


def render(model: Model, *, graphs: bool, spoken: int = 70) -> Any:
    """Two utterances through the flow, block by block, in one batch: ``[2, frames, bands]``."""
    renderer = BlockRenderer(model.flow, pages=24, states=4, max_blocks=12)
    shared = Graphs(enabled=graphs)
    BlockStage(renderer, VocoderStage(model.vocoder, (1,), shared), (4,), shared)
    g = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, TINY.flow.vocabulary, (3, spoken), generator=g).tolist()
    mel = torch.randn(60, TINY.flow.mel_bands, generator=g) * 2 - 6
    speaker = torch.randn(TINY.flow.speaker_width, generator=g)
    prompt = renderer.prompt(tokens[2][:30], mel, speaker)
    renderings = [renderer.begin(prompt) for _ in range(2)]
    parts: list[list[Any]] = [[], []]
    while True:
        blocks = [
            rendering.next(row, True) if rendering else None
            for rendering, row in zip(renderings, tokens[:2], strict=True)
        ]
        if blocks[0] is None or blocks[1] is None:
            return torch.stack([torch.cat(part) for part in parts])
        mels = renderer.render([blocks[0], blocks[1]], 4)
        for part, block, mel in zip(parts, blocks, mels, strict=True):
            part.append(mel[block.first : block.frames].clone())


@torch.inference_mode()
def test_blocks_from_graphs_are_blocks(tiny_pack: Path) -> None:
    model = load(tiny_pack)
    eager = render(model, graphs=False)
    assert eager.shape == (2, 140, TINY.flow.mel_bands)
    assert relative(render(model, graphs=True), eager) < 1e-5


def vocode(model: Model, *, graphs: bool) -> Any:
    """A batch of three windows in a stage that has run other ones before: ``[3, n]``."""
    stage: Any = VocoderStage(model.vocoder, (4,), Graphs(enabled=graphs))
    stage.warm_up()
    shape = 4, WINDOW_LENGTHS[-1], stage._trims()
    g = torch.Generator().manual_seed(2)
    inputs = stage._inputs_of(shape)
    inputs.mel.copy_(torch.randn(inputs.mel.shape, generator=g) * 2 - 4)
    inputs.places[0].copy_(torch.tensor([0, 1000, 2000, 3000]))
    inputs.phase.copy_(torch.rand(4, dtype=torch.float64, generator=g))
    samples, _ = stage._run(shape)
    return samples[:3].clone()


@torch.inference_mode()
def test_windows_from_graphs_are_windows(tiny_pack: Path) -> None:
    model = load(tiny_pack)
    assert relative(vocode(model, graphs=True), vocode(model, graphs=False)) < 1e-5


@torch.inference_mode()
def test_a_gpu_computes_what_a_cpu_does(tiny_pack: Path) -> None:
    gpu, cpu = load(tiny_pack), load(tiny_pack, "cpu")
    tokens = torch.arange(TOKENS)[None] * 7 % TINY.flow.vocabulary
    length = torch.tensor([TOKENS])
    mel = torch.zeros(1, 0, TINY.flow.mel_bands)
    g = torch.Generator().manual_seed(3)
    speaker = torch.randn(1, TINY.flow.speaker_width, generator=g)
    mels: list[Any] = []
    waves: list[Any] = []
    for model, device in ((gpu, "cuda"), (cpu, "cpu")):
        moved = [x.to(device) for x in (tokens, length, mel, speaker)]
        mels.append(model.flow.render(*moved, streaming=True, final=True).cpu())
        bands = mels[0].transpose(1, 2).to(device)
        frames = bands.shape[2] * TINY.vocoder.hop
        noise = torch.randn(
            1, frames, TINY.vocoder.harmonics + 1, generator=torch.Generator().manual_seed(4)
        )
        waves.append(model.vocoder.waveform(bands, noise.to(device)).cpu())
    assert relative(*mels) < 1e-4
    assert relative(*waves) < 1e-3


def test_a_turn_sounds_the_same_from_graphs(tiny_pack: Path) -> None:
    heard = [
        Driver(tiny_pack, device="cuda", dtype="fp32", slots=4, cuda_graphs=graphs).speak(
            1, *SENTENCES
        )
        for graphs in ("on", "off")
    ]
    assert np.linalg.norm(heard[0] - heard[1]) < 1e-3 * np.linalg.norm(heard[1])


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_it_speaks_in_half_precision(tiny_pack: Path, dtype: str) -> None:
    driver = Driver(tiny_pack, warm=True, device="cuda", dtype=dtype, slots=8)
    for turn in range(8):
        driver.open(turn, segments(*SENTENCES), seed=turn)
    driver.run(*range(8))
    for turn in range(8):
        heard = driver.heard(turn)
        assert np.isfinite(heard).all()
        assert 0.001 < float(np.abs(heard).max()) < 1.0


def test_no_step_waits_for_the_device(tiny_pack: Path) -> None:
    """But where it hands on: waiting for an event of one's own is no synchronisation."""
    driver = Driver(tiny_pack, warm=True, device="cuda", slots=4)
    # What is read when an utterance begins may wait: these speak one utterance each.
    for turn in range(4):
        driver.open(turn, segments(SENTENCES[1]), seed=turn)
    while any(sequence.waiting for sequence in driver.core._sequences.values()):
        driver.core.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        driver.run(*range(4))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_comes_back(tiny_pack: Path) -> None:
    left: list[int] = []
    for _ in range(4):
        driver = Driver(tiny_pack, warm=True, device="cuda", slots=4)
        driver.speak(1, SENTENCES[0])
        driver.core.close()
        del driver
        gc.collect()
        torch.cuda.empty_cache()
        left.append(torch.cuda.memory_reserved())
    # The first run leaves what libraries keep for themselves.
    assert max(left[1:]) - left[0] <= 8 * MIB
