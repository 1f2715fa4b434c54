"""The steady loop: what a CUDA graph can hold, and what becomes of live sequences beside one.

No GPU is needed: ``Captured`` stands in for graphs.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the cosyvoice extra (torch)")

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.worker.engines.cosyvoice2.captured import Captured
from tests.worker.engines.cosyvoice2.driving import SENTENCES, Driver, segments
from voicefleet.worker.engines.cosyvoice2 import loading
from voicefleet.worker.engines.cosyvoice2.flow.blocks import BlockRenderer
from voicefleet.worker.engines.cosyvoice2.graphs import Graphs
from voicefleet.worker.engines.cosyvoice2.hyperparameters import TINY
from voicefleet.worker.engines.cosyvoice2.lm import sampling
from voicefleet.worker.engines.cosyvoice2.lm.decoding import Decoder
from voicefleet.worker.engines.cosyvoice2.pack import checkpoint
from voicefleet.worker.engines.cosyvoice2.pack.checkpoint import Model
from voicefleet.worker.engines.cosyvoice2.rendering import BlockStage
from voicefleet.worker.engines.cosyvoice2.turn_sequence import TurnSequence, Utterance
from voicefleet.worker.engines.cosyvoice2.vocoding import VocoderStage
from voicefleet.worker.engines.cosyvoice2.voices import files as voice_files
from voicefleet.worker.engines.cosyvoice2.voices import voice
from voicefleet.worker.engines.cosyvoice2.voices.speaker import Conditioning, Speaker
from voicefleet.worker.engines.protocol import TurnSpec

TEXT = TINY.language_model.vocabulary
CODES = TINY.language_model.speech_tokens


@pytest.fixture(scope="module")
def model(tiny_pack: Path) -> Model:
    return checkpoint.load(tiny_pack, TINY, torch.float32, torch.device("cpu"))


# Decoding.


def decoder_of(model: Model, graphs: Graphs, slots: int = 3) -> Decoder:
    return Decoder(model.language_model, slots, length=1100, max_tokens=400, graphs=graphs)


def begin(decoder: Decoder, slot: int, text: int, seed: int) -> None:
    """An utterance that never ends of itself, behind ``text`` tokens."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, TEXT, (text,), generator=generator)
    speech = torch.randint(0, CODES, (9,), generator=generator)
    decoder.begin(slot, sampling.draws(seed, 0, decoder.max_tokens))
    decoder.constrain(slot, min_tokens=decoder.max_tokens, banned=(True, True, True))
    decoder.prefill(slot, decoder.model.prompt_embeddings(tokens, speech))


def decode(decoder: Decoder, limits: dict[int, int], told: dict[int, list[int]]) -> None:
    """Decode until every slot stands at its limit."""
    while True:
        decoder.multi_step(limits, 7)
        news = decoder.collect()
        if not news:
            return
        for slot, (new, _) in news.items():
            told.setdefault(slot, []).extend(new)


def story(decoder: Decoder) -> list[list[int]]:
    """Sessions come, grow beyond what attention looked at, and are followed by others."""
    told: dict[int, list[int]] = {}
    begin(decoder, 0, 20, seed=1)
    decode(decoder, {0: 30}, told)
    begin(decoder, 1, 70, seed=2)  # a prompt of a length that was not seen yet
    decode(decoder, {0: 45, 1: 30}, told)
    begin(decoder, 2, 150, seed=3)
    decode(decoder, {0: 50, 1: 60, 2: 120}, told)  # beyond 256 positions
    decoder.dry_run()
    decode(decoder, {0: 90}, told)  # the others stand still, farther on
    decode(decoder, {0: 95, 1: 95, 2: 130}, told)
    first = told.pop(1)
    begin(decoder, 1, 500, seed=4)  # in a slot that was used, beyond 512 positions
    decode(decoder, {0: 140, 1: 40, 2: 160}, told)
    decoder.prefill(2, decoder.model.text(torch.arange(40)))  # more text in the middle
    decode(decoder, {0: 150, 1: 50, 2: 190}, told)
    return [told[0], first, told[1], told[2]]


@torch.inference_mode()
def test_decoding_from_graphs_is_decoding(model: Model) -> None:
    """Steps and prompts are captured while sequences are in the middle of their utterances."""
    expected = story(decoder_of(model, Graphs(enabled=False)))
    assert [len(tokens) for tokens in expected] == [150, 95, 50, 190]
    captured = Captured()
    assert story(decoder_of(model, captured)) == expected
    kinds = Counter(key[0] for key in captured.keys if isinstance(key, tuple))
    assert kinds["decode"] == 3, "one for each reach"
    assert kinds["prompt"] >= 3
    assert captured.count == len(captured.keys)


@torch.inference_mode()
def test_warming_up_again_disturbs_nobody(model: Model) -> None:
    expected: dict[int, list[int]] = {}
    decoder = decoder_of(model, Graphs(enabled=False))
    begin(decoder, 0, 20, seed=1)
    decode(decoder, {0: 60}, expected)

    told: dict[int, list[int]] = {}
    decoder = decoder_of(model, Captured(recorded=False))
    begin(decoder, 0, 20, seed=1)
    decode(decoder, {0: 30}, told)
    decoder.warm_up(1024)
    decoder.dry_run()
    decode(decoder, {0: 60}, told)
    assert told == expected


# Rendering.

LENGTHS = (8, 31, 60, 87, 140)
BATCHES = (1, 2, 4)
NOTHING = np.zeros(0, dtype=np.float32)


def stage_of(
    model: Model, graphs: Graphs, apart: bool = False, batches: tuple[int, ...] = BATCHES
) -> BlockStage:
    renderer = BlockRenderer(model.flow, pages=64, states=16, max_blocks=16, rows_apart=apart)
    return BlockStage(renderer, VocoderStage(model.vocoder, batches, graphs), batches, graphs)


def speaker_of(stage: BlockStage, pack: Path) -> Speaker:
    own = voice.aligned(voice_files.voices_of(pack)["random"], 15)
    return Speaker(own, stage.prepare(own))


def session_of(
    stage: BlockStage, speaker: Speaker, tokens: int, speed: float = 1.0
) -> TurnSequence:
    spec = TurnSpec(voice="random", seed=tokens, speed=speed)
    sequence = TurnSequence(tokens, spec, speaker, Conditioning([], []), 0, TINY.sample_rate)
    utterance = Utterance(
        number=tokens,
        text=[1],
        marks=(),
        min_tokens=tokens,
        max_tokens=tokens,
        chunking=stage.chunking(speaker),
    )
    sequence.speaking.append(utterance)
    return sequence


def feed(sequence: TurnSequence, until: int) -> None:
    """Decoding has come to token ``until``."""
    (utterance,) = sequence.speaking
    until = max(until, len(utterance.tokens))
    generator = torch.Generator().manual_seed(sequence.turn)
    tokens = torch.randint(0, CODES, (sequence.turn,), generator=generator).tolist()
    utterance.tokens[:] = tokens[:until]
    utterance.decoded = until >= len(tokens)


def speak(stage: BlockStage, sequences: Sequence[TurnSequence]) -> dict[int, np.ndarray]:
    """All of them side by side, some tokens at a time; each begins later than the one before."""
    heard: dict[int, list[np.ndarray]] = {sequence.turn: [] for sequence in sequences}
    farthest = max(sequence.turn for sequence in sequences)
    for until in range(11, farthest + 16 * len(sequences) + 300, 11):
        for place, sequence in enumerate(sequences):
            feed(sequence, max(0, until - 16 * place))
        render(stage, sequences, heard)
    assert not any(stage.holds(sequence.speaking[0]) for sequence in sequences)
    return {turn: np.concatenate([NOTHING, *pieces]) for turn, pieces in heard.items()}


def render(
    stage: BlockStage, sequences: Sequence[TurnSequence], heard: dict[int, list[np.ndarray]]
) -> None:
    able = [s for s in sequences if s.rendering is not None and s.rendering.ready]
    stage.start(able[: stage.batch])
    for piece in stage.collect():
        heard[piece.sequence.turn].append(piece.samples.copy())


def everybody(
    stage: BlockStage, pack: Path, lengths: tuple[int, ...] = LENGTHS
) -> dict[int, np.ndarray]:
    speaker = speaker_of(stage, pack)
    return speak(stage, [session_of(stage, speaker, tokens) for tokens in lengths])


@pytest.mark.timeout(600)
@torch.inference_mode()
def test_rendering_from_recordings_is_rendering(model: Model, tiny_pack: Path) -> None:
    """To the last bit."""
    lengths, batches = (31, 60, 85), (3,)
    plain = stage_of(model, Graphs(enabled=False), batches=batches)
    expected = everybody(plain, tiny_pack, lengths)
    captured = Captured()
    found = everybody(stage_of(model, captured, batches=batches), tiny_pack, lengths)
    for turn, samples in expected.items():
        assert len(samples) == turn * TINY.samples_per_token
        assert np.array_equal(found[turn], samples)
    kinds = Counter(key[0] for key in captured.keys if isinstance(key, tuple))
    assert kinds["flow"] == 3, "of the prompt, up to 4 pages, and up to 8"
    assert kinds["vocoder"] >= 3, "first, middle and last windows"


@torch.inference_mode()
def test_rendering_from_graphs_is_rendering(model: Model, tiny_pack: Path) -> None:
    """Batches of all sizes, captured as they come; and nearly what rows one by one give."""
    expected = everybody(stage_of(model, Graphs(enabled=False)), tiny_pack)
    found = everybody(stage_of(model, Captured(recorded=False)), tiny_pack)
    apart = everybody(stage_of(model, Graphs(enabled=False), apart=True), tiny_pack)
    for turn, samples in expected.items():
        assert np.array_equal(found[turn], samples)
        assert np.abs(apart[turn] - samples).max() < 1e-4


@pytest.mark.timeout(300)
@torch.inference_mode()
def test_warming_up_the_renderer_again_disturbs_nobody(model: Model, tiny_pack: Path) -> None:
    """Every shape is captured while three utterances are half rendered."""
    expected = everybody(stage_of(model, Graphs(enabled=False)), tiny_pack)
    stage = stage_of(model, Captured(recorded=False))
    speaker = speaker_of(stage, tiny_pack)
    sequences = [session_of(stage, speaker, tokens) for tokens in LENGTHS]
    heard: dict[int, list[np.ndarray]] = {tokens: [] for tokens in LENGTHS}
    for until in (20, 45, 70):
        for sequence in sequences[1:4]:
            feed(sequence, until)
        render(stage, sequences[1:4], heard)
    stage.warm_up(8)
    stage.dry_run(4)
    for turn, rest in speak(stage, sequences).items():
        whole = np.concatenate([*heard[turn], rest])
        assert len(whole) == len(expected[turn])
        assert np.allclose(whole, expected[turn], atol=1e-5)


@pytest.mark.timeout(300)
def test_a_core_with_graphs_says_the_same(tiny_pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything at once, nothing captured beforehand: sequences meet captures in mid-turn."""
    alone = Driver(tiny_pack, slots=3).speak(1, *SENTENCES)
    captured = Captured(recorded=False)
    monkeypatch.setattr(loading, "_graphs", lambda *_: captured)
    driver = Driver(tiny_pack, slots=3)
    assert captured.count == 0
    for turn in (1, 2, 3):
        driver.open(turn, segments(*SENTENCES), seed=7 if turn < 3 else 8)
        for _ in range(7 * turn):
            driver.core.step()
    driver.run(1, 2, 3)
    for turn in (1, 2):
        heard = driver.heard(turn)
        assert len(heard) == len(alone)
        assert np.linalg.norm(heard - alone) < 1e-4 * np.linalg.norm(alone)
    # Alone it may need batches of one that company, as it happened to come together, did not.
    assert np.array_equal(driver.speak(4, *SENTENCES), driver.heard(1))
    count = captured.count
    assert np.array_equal(driver.speak(5, *SENTENCES), driver.heard(1))
    assert captured.count == count, "nothing is captured twice"


@pytest.mark.parametrize("flow_batch", [1, 4])
def test_warming_up_leaves_nothing_behind(tiny_pack: Path, flow_batch: int) -> None:
    """Neither in the voice's prompt, which warm-up is the first to compute, nor elsewhere."""
    cold = Driver(tiny_pack, slots=1, flow_batch=flow_batch).speak(1, SENTENCES[0])
    warm = Driver(tiny_pack, slots=1, flow_batch=flow_batch, warm=True)
    assert np.array_equal(warm.speak(1, SENTENCES[0]), cold)


def test_graphs_switched_off_are_calls() -> None:
    off = Graphs(enabled=False)
    calls: list[int] = []

    def work() -> int:
        calls.append(1)
        return len(calls)

    def never() -> None:
        raise AssertionError("nothing has to rest where nothing is captured")

    assert off.has("key")
    off.prepare("key", work, never)
    assert not calls
    assert [off.run("key", work) for _ in range(3)] == [1, 2, 3]
    assert off.count == 1
    off.clear()
    assert off.count == 0


# What a step is made of.

WAITS = {
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "unique2",
    "equal",
}
"""Operations whose result, or whose shape, the host has to wait for."""


class Operations(TorchDispatchMode):
    """Counts what is run. ``launches`` leaves out what only looks at a tensor in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.all: Counter[str] = Counter()
        self.launches = 0
        self.host_made = 0
        self.devices: set[frozenset[str]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.all[name] += 1
        looks = all(
            value.alias_info is not None and not value.alias_info.is_write
            for value in func._schema.returns
        )
        if not looks and name not in {"_unsafe_view", "reshape", "detach", "lift_fresh"}:
            self.launches += 1
        # A tensor of Python's numbers, and a mask as an index, whose size only the device knows.
        self.host_made += name in {"lift_fresh", "lift_fresh_copy"}
        if name in {"index", "index_put_", "_index_put_impl_", "index_put"}:
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"{name} by a mask waits for the device"
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, result))
        tensors = (leaf for leaf in leaves if isinstance(leaf, torch.Tensor))
        self.devices.add(frozenset(tensor.device.type for tensor in tensors))
        return result

    def assert_safe(self) -> None:
        assert not WAITS & set(self.all), WAITS & set(self.all)
        assert all(len(devices) <= 1 for devices in self.devices), "copies between devices"
        assert not self.host_made, "tensors are made of Python's numbers on the way"


@contextmanager
def counting(of: Any, name: str) -> Iterator[list[Operations]]:
    """What each call of the method ``name`` runs."""
    calls: list[Operations] = []
    original = getattr(of, name)

    def counted(*args: Any) -> Any:
        with Operations() as operations:
            result = original(*args)
        calls.append(operations)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of, name, counted)
        yield calls


def step_launches(model: Model, slots: int, active: int) -> set[int]:
    decoder = decoder_of(model, Graphs(enabled=False), slots)
    for slot in range(active):
        begin(decoder, slot, 20 + 5 * slot, seed=slot)
    with counting(decoder, "_step") as steps:
        decoder.multi_step(dict.fromkeys(range(active), 9), 8)
    tokens = decoder.collect()
    assert [len(new) for new, _ in tokens.values()] == [8] * active
    assert len(steps) == 8
    for operations in steps:
        operations.assert_safe()
    return {operations.launches for operations in steps}


@torch.inference_mode()
def test_a_decode_step_is_the_same_work_for_all(
    model: Model, record_property: Callable[[str, object], None]
) -> None:
    """As many launches for one sequence as for sixteen, and nothing that the host waits for."""
    (alone,) = step_launches(model, 1, 1)
    assert step_launches(model, 16, 1) == {alone}
    assert step_launches(model, 16, 16) == {alone}
    assert step_launches(model, 4, 3) == {alone}
    record_property("launches_per_decode_step", alone)
    layers = TINY.language_model.layers
    assert alone < 40 * layers + 60


@torch.inference_mode()
def test_a_block_step_is_the_same_work_for_all(
    model: Model, record_property: Callable[[str, object], None]
) -> None:
    renderer = BlockRenderer(model.flow, pages=8, states=4, max_blocks=8, rows_apart=False)
    counts: list[int] = []
    for rows, pages in ((1, 4), (4, 4), (16, 8)):
        inputs = renderer.inputs(rows, pages)
        with Operations() as operations:
            renderer.step(inputs)
        operations.assert_safe()
        counts.append(operations.launches)
    assert len(set(counts)) == 1
    record_property("launches_per_block_step", counts[0])


@torch.inference_mode()
def test_a_window_is_the_same_work_for_all(
    model: Model, record_property: Callable[[str, object], None]
) -> None:
    stage = VocoderStage(model.vocoder, BATCHES, Graphs(enabled=False))
    counts: list[int] = []
    model.vocoder.rows_apart = False
    try:
        for shape in ((1, 96, (4, 4)), (4, 96, (4, 4)), (2, 56, (0, 4))):
            stage._inputs_of(shape)
            with Operations() as operations:
                stage._window(shape)
            operations.assert_safe()
            counts.append(operations.launches)
    finally:
        model.vocoder.rows_apart = True
    assert counts[0] == counts[1]
    record_property("launches_per_window", counts[0])


@torch.inference_mode()
def test_nothing_leaves_the_device() -> None:
    """The device is ``meta``, which is not the host either and has no values to wait for."""
    model = checkpoint.skeleton(TINY)
    for part in model:
        part.to("meta").requires_grad_(False)
        part.optimise()
        part.to("meta")
    decoder = decoder_of(model, Graphs(enabled=False))
    decoder._prompts[32] = decoder._static_prompt(32)
    renderer = BlockRenderer(model.flow, pages=8, states=4, max_blocks=8, rows_apart=False)
    inputs = renderer.inputs(4, 8)
    vocoder, window = VocoderStage(model.vocoder, BATCHES, Graphs(enabled=False)), (4, 96, (4, 4))
    vocoder._inputs_of(window)
    for work in (
        lambda: decoder._step(512),
        lambda: decoder._run_prefill(32, 32),
        lambda: renderer.step(inputs),
        lambda: vocoder._window(window),
    ):
        with Operations() as operations:
            work()
        operations.assert_safe()
        assert operations.devices == {frozenset({"meta"})}


@torch.inference_mode()
def test_what_would_wait_is_noticed() -> None:
    """The measure itself: each of these is what the loop must not do."""
    x = torch.arange(4.0)
    for forbidden in (lambda: x.sum().item(), x.nonzero, lambda: torch.tensor([1, 2])):
        with Operations() as operations:
            forbidden()
        with pytest.raises(AssertionError):
            operations.assert_safe()
    with pytest.raises(AssertionError, match="mask"), Operations():
        _ = x[x > 1]
