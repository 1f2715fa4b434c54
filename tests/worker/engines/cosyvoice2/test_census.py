"""Once an engine is warm, nothing is captured and no shape is new, whatever is asked of it.

A capture makes everybody wait who listens, and so does a kernel that is chosen, or planned, for a
shape that was not seen before. No GPU is needed: see ``captured``.
"""

import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

torch = pytest.importorskip("torch", reason="needs the cosyvoice extra (torch)")

from tests.worker.engines.cosyvoice2.captured import (
    ATTENTION,
    CONVOLUTION,
    PRODUCT,
    Captured,
    Census,
)
from tests.worker.engines.cosyvoice2.driving import SENTENCES, Driver, segments
from voicefleet.worker.engines.cosyvoice2 import graphs, loading
from voicefleet.worker.engines.cosyvoice2.flow.blocks import BlockRenderer
from voicefleet.worker.engines.cosyvoice2.turn_sequence import Utterance
from voicefleet.worker.engines.cosyvoice2.voices import files as voice_files
from voicefleet.worker.engines.cosyvoice2.voices.voice import Voice
from voicefleet.worker.engines.hosting.messages import Spoken
from voicefleet.worker.engines.protocol import Segment

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def pack(tiny_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With four voices more, of 20 s each: the last finds no room among the prepared ones."""
    folder = tmp_path_factory.mktemp("census") / "cosyvoice2" / "tiny"
    shutil.copytree(tiny_pack, folder)
    chance = np.random.default_rng(3)
    for n in range(4):
        tokens = chance.integers(0, 6561, 500)
        voice = Voice(
            name=f"long{n}",
            speaker=chance.standard_normal(192).astype(np.float32),
            prompt_text="What is said in it.",
            speech_tokens=tokens,
            flow_tokens=tokens,
            mel=chance.standard_normal((1000, 80)).astype(np.float32),
        )
        voice_files.save(voice, folder / "voices" / f"{voice.name}.safetensors")
    return folder


class Warm:
    """A warm engine whose batches are those of a GPU, and what ran in it outside of graphs."""

    def __init__(self, pack: Path) -> None:
        self.captured = Captured(recorded=False)
        self.census = Census(self.captured)
        with pytest.MonkeyPatch.context() as patch, self.census:
            # A run before each capture is for libraries' sake, which are not here.
            patch.setattr(graphs, "WARM_UP_RUNS", 0)
            patch.setattr(loading, "_graphs", lambda *_: self.captured)
            patch.setattr(loading, "BlockRenderer", partial(BlockRenderer, rows_apart=False))
            self.driver = Driver(pack, slots=3, flow_batch=2, text_streaming=True, warm=True)
        self.keys = set(self.captured.keys)
        self.seen = set(self.census.eager)
        self.turns = 0

    def open(self, parts: Sequence[Segment], **spec: Any) -> int:
        self.turns += 1
        with self.census:
            self.driver.open(self.turns, parts, **spec)
        return self.turns

    def utter(self, *lengths: int, voice: str = "random", speed: float = 1.0) -> int:
        """A turn of utterances of so many speech tokens each."""
        turn = self.open([], voice=voice, speed=speed)
        core = self.driver.core
        sequence = core._sequences[turn]
        sequence.waiting.extend(
            Utterance(
                number=number,
                text=[5, 6, 7],
                marks=(),
                min_tokens=tokens,
                max_tokens=tokens,
                chunking=core._runner.audio.chunking(sequence.speaker),
            )
            for number, tokens in enumerate(lengths)
        )
        return turn

    def run(self, *turns: int) -> None:
        with self.census:
            self.driver.run(*turns)
        assert all(isinstance(self.driver.ended[turn], Spoken) for turn in turns)

    def assert_nothing_new(self) -> None:
        """Neither a graph nor a shape; of attention and convolutions none outside of graphs."""
        assert set(self.captured.keys) == self.keys
        assert set(self.census.eager) == self.seen
        assert {kind for kind, _ in self.census.eager} <= {PRODUCT}


@pytest.fixture(scope="module")
def warm(pack: Path) -> Iterator[Warm]:
    with torch.inference_mode():
        yield Warm(pack)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def test_utterances_of_all_short_lengths(warm: Warm) -> None:
    """Those of up to 48 tokens begin and end in one window."""
    lengths = [1, 2, *range(5, 52, 3), 46, 47, 48, 49]
    warm.run(*(warm.utter(*lengths[first::3]) for first in range(3)))
    warm.assert_nothing_new()


def test_usual_sentences_together(warm: Warm) -> None:
    warm.run(*(warm.open(segments(*SENTENCES), seed=seed) for seed in range(3)))
    warm.assert_nothing_new()


@pytest.mark.parametrize("speed", [0.5, 1.3])
def test_any_speed(warm: Warm, speed: float) -> None:
    warm.run(*(warm.utter(*lengths, speed=speed) for lengths in ((9, 23, 70), (41, 130))))
    warm.assert_nothing_new()


def test_a_long_utterance_beside_short_ones(warm: Warm) -> None:
    """16 s behind a prompt of 20: beyond 32 blocks, up to which utterances are batched."""
    stage: Any = warm.driver.core._runner.audio
    assert stage._together == 32
    warm.run(warm.utter(400, voice="long0"), warm.utter(31, 77), warm.utter(60))
    warm.assert_nothing_new()


def test_the_first_use_of_a_voice(warm: Warm) -> None:
    """Those for which there is room are prepared already; the last is prepared from graphs."""
    audio: Any = warm.driver.core._runner.audio
    for name, prepared in (("default", True), ("long0", True), ("long2", True), ("long3", False)):
        free = audio._renderer.free_pages
        turn = warm.utter(20, voice=name)
        assert (audio._renderer.free_pages == free) is prepared, name
        warm.run(turn)
    warm.assert_nothing_new()


def test_text_that_is_written_while_it_is_spoken(warm: Warm) -> None:
    cut = segments(*SENTENCES[1].split())
    parts = [structs.replace(part, open=part is not cut[-1]) for part in cut]
    warm.run(*(warm.open(parts, streamed=True, voice=name) for name in ("random", "long0")))
    warm.assert_nothing_new()


def test_a_prompt_longer_than_any_that_is_read_at_once(warm: Warm) -> None:
    turn = warm.open(segments(SENTENCES[0]), mode="instruct", instruct="softly " * 200)
    assert warm.driver.core._sequences[turn].conditioning.length > 1024
    warm.run(turn)
    warm.assert_nothing_new()


def test_the_census_notices(pack: Path) -> None:
    """What it looks for is there in an engine without graphs, and one that was not warmed up."""
    captured = Captured(recorded=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "_graphs", lambda *_: captured)
        cold = Driver(pack, slots=1)
    assert not captured.keys
    cold.speak(1, "Well done.")
    assert {key[0] for key in captured.keys if isinstance(key, tuple)} == {
        *("prompt", "decode", "flow", "vocoder")
    }
    census = Census(captured)
    plain = Driver(pack, slots=1)
    with census:
        plain.speak(1, "Well done.")
    assert {kind for kind, _ in census.eager} == {ATTENTION, CONVOLUTION, PRODUCT}


def test_unused_voices_are_evicted_before_anything_is_computed_anew(
    pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(pack, slots=1)
    alone = driver.speak(1, SENTENCES[1])
    model: Any = driver.core._runner
    renderer = model.audio._renderer
    for name in ("long0", "long1", "long2"):
        model.speakers.preload(name)
    monkeypatch.setattr(renderer._blocks, "_pages", [])
    monkeypatch.delattr(BlockRenderer, "recompute")
    assert np.array_equal(driver.speak(2, SENTENCES[1]), alone)
    assert set(model.speakers._kept) == {"random", "long1", "long2"}
