"""The engine's loop: what it speaks does not depend on who else speaks, when, or how it ends."""

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the cosyvoice extra (torch)")

from tests.worker.engines.cosyvoice2.driving import SENTENCES, Driver, segments
from tests.worker.engines.cosyvoice2.recordings import speechlike
from voicefleet.worker.engines.hosting.messages import Audio, Failed, Spoken
from voicefleet.worker.engines.protocol import CannotSpeakError, EngineError


@pytest.fixture(scope="module")
def driver(tiny_pack: Path) -> Driver:
    return Driver(tiny_pack, slots=4)


@pytest.fixture(scope="module")
def alone(driver: Driver) -> np.ndarray:
    """Three sentences, spoken while nobody else speaks."""
    return driver.speak(1, *SENTENCES)


def test_it_speaks(driver: Driver, alone: np.ndarray) -> None:
    seconds = len(alone) / driver.core.info.native_rate
    assert 8 < seconds < 14, "a synthetic model speaks as long as speech is"
    assert np.isfinite(alone).all()
    assert 0.001 < float(np.abs(alone).max()) < 1.0
    assert [mark.segment.index for _, mark in driver.marks[1]] == [0, 1, 2]
    assert driver.marks[1][0][0] == 0


def test_a_turn_is_the_same_in_company(driver: Driver, alone: np.ndarray) -> None:
    for turn, texts in enumerate((SENTENCES[1:], SENTENCES, SENTENCES[:1]), start=10):
        driver.open(turn, segments(*texts), seed=7 if turn == 11 else turn)
    driver.run(10, 11, 12)
    assert np.array_equal(driver.heard(11), alone)
    assert not np.array_equal(driver.heard(10)[:1000], alone[:1000])


@pytest.mark.parametrize("seed", range(3))
def test_a_turn_is_the_same_whatever_happens_around_it(
    driver: Driver, alone: np.ndarray, seed: int
) -> None:
    """Others come, stop in the middle and listen at their own pace."""
    chance = random.Random(seed)
    base = 1000 * (seed + 1)
    driver.open(base, segments(*SENTENCES))
    others: dict[int, int] = {}
    for n in range(1, 100_000):
        if base in driver.ended:
            break
        if len(others) < 3 and chance.random() < 0.1:
            driver.open(base + n, segments(*SENTENCES[: chance.randint(1, 3)]), seed=n)
            others[base + n] = n
        if others and chance.random() < 0.05:
            turn = chance.choice(list(others))
            driver.core.cancel(turn)
            del others[turn]
        driver.core.step()
        for turn in [*others, base]:
            if chance.random() < 0.7:
                taken = sum(map(len, driver.audio.get(turn, [])))
                driver.core.consumed(turn, taken)
        others = {turn: n for turn, n in others.items() if turn not in driver.ended}
    for turn in others:
        driver.core.cancel(turn)
    assert np.array_equal(driver.heard(base), alone)


def test_a_turn_can_be_taken_up_from_any_segment(driver: Driver, alone: np.ndarray) -> None:
    for first in (1, 2):
        turn = 20 + first
        driver.open(turn, segments(*SENTENCES)[first:])
        driver.run(turn)
        at = driver.marks[1][first][0]
        assert np.array_equal(driver.heard(turn), alone[at:])


def test_another_engine_speaks_the_same(tiny_pack: Path, alone: np.ndarray) -> None:
    """As a take-over needs it: another process, other slots, warmed up or not."""
    assert np.array_equal(Driver(tiny_pack, slots=1, warm=True).speak(1, *SENTENCES), alone)


def test_seeds_differ(driver: Driver, alone: np.ndarray) -> None:
    other = driver.speak(30, *SENTENCES, seed=8)
    assert len(other) == len(alone)
    assert not np.allclose(other, alone, atol=1e-3)


def test_without_room_for_caches_it_says_the_same(tiny_pack: Path, alone: np.ndarray) -> None:
    """Blocks that cannot be remembered are computed anew: the same but for rounding."""
    driver = Driver(tiny_pack, slots=2, flow_cache_mb=6)
    for turn in (1, 2):
        driver.open(turn, segments(*SENTENCES))
    driver.run(1, 2)
    for turn in (1, 2):
        heard = driver.heard(turn)
        assert len(heard) == len(alone)
        assert np.abs(heard - alone).max() < 1e-3


def test_a_listener_who_does_not_listen_is_waited_for(driver: Driver) -> None:
    driver.open(40, segments(*SENTENCES))
    while driver.core.step():
        pass
    ahead = sum(map(len, driver.audio[40])) / driver.core.info.native_rate
    assert 3.0 <= ahead < 4.5, "max_ahead_s and at most one block"
    driver.run(40)


def test_cancelling_frees_everything(tiny_pack: Path) -> None:
    driver = Driver(tiny_pack, slots=2)
    driver.speak(1, SENTENCES[0])
    renderer: Any = driver.core._runner.audio._renderer
    free = renderer.free_pages, renderer.free_states
    for n in range(12):
        driver.open(10 + n, segments(*SENTENCES))
        for _ in range(5 * n):
            driver.core.step()
        driver.core.cancel(10 + n)
        assert (renderer.free_pages, renderer.free_states) == free
        assert len(driver.core._free_slots) == 2
    count = len(driver.events)
    assert not driver.core.step(), "nothing is left to do"
    assert len(driver.events) == count


def test_more_turns_than_places_are_refused(tiny_pack: Path) -> None:
    driver = Driver(tiny_pack, slots=1)
    driver.open(1, segments(*SENTENCES))
    with pytest.raises(EngineError, match="places"):
        driver.open(2, segments(*SENTENCES))
    driver.run(1)
    driver.speak(3, SENTENCES[0])


def test_what_cannot_be_spoken_is_a_pause_with_its_mark(driver: Driver) -> None:
    driver.open(50, segments("...", SENTENCES[0], "?!"))
    driver.run(50)
    marks = driver.marks[50]
    assert [mark.segment.index for _, mark in marks] == [0, 1, 2]
    pause = round(0.2 * driver.core.info.native_rate)
    assert marks[1][0] == pause
    assert not np.any(driver.heard(50)[:pause])
    assert len(driver.heard(50)) - marks[2][0] == pause


def test_an_empty_turn_ends(driver: Driver) -> None:
    driver.open(55, [])
    driver.run(55)
    assert driver.ended[55] == Spoken(55)


def test_speed(driver: Driver, alone: np.ndarray) -> None:
    for turn, speed in ((60, 2.0), (61, 0.5), (62, 1.3)):
        heard = driver.speak(turn, *SENTENCES, speed=speed)
        assert len(heard) * speed == pytest.approx(len(alone), rel=0.01)
        assert np.isfinite(heard).all()


def test_modes(driver: Driver, alone: np.ndarray) -> None:
    zero_shot = driver.speak(70, *SENTENCES, mode="zero_shot")
    assert np.array_equal(zero_shot, alone), "the default where a voice has a recording"
    spoken = [zero_shot]
    spoken.append(driver.speak(71, *SENTENCES, mode="cross_lingual"))
    spoken.append(driver.speak(72, *SENTENCES, mode="instruct", instruct="Speak softly."))
    spoken.append(driver.speak(73, *SENTENCES, voice="default", mode="sft"))
    for n, one in enumerate(spoken):
        for other in spoken[:n]:
            assert len(one) != len(other) or not np.allclose(one, other, atol=1e-3)
    by_instruction = driver.speak(74, *SENTENCES, instruct="Speak softly.")
    assert np.array_equal(by_instruction, spoken[2])


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"voice": "nobody"}, "unknown voice; the voices are random, default"),
        ({"mode": "sft"}, "the voice random offers zero_shot, cross_lingual, instruct, not sft"),
        ({"mode": "instruct"}, "needs an instruction"),
        ({"mode": "zero_shot", "instruct": "Softly."}, "takes no instruction"),
    ],
)
def test_what_it_cannot_do_is_refused(driver: Driver, spec: dict[str, str], says: str) -> None:
    with pytest.raises(CannotSpeakError, match=says):
        driver.open(80, [], **spec)
    driver.speak(81, SENTENCES[0])


def test_first_audio_comes_before_the_rest_is_decoded(driver: Driver) -> None:
    driver.open(90, segments(SENTENCES[1]))
    sequence = driver.core._sequences[90]
    while not driver.audio.get(90):
        driver.core.step()
    (utterance,) = sequence.speaking
    assert utterance.rendered == 20, "first_chunk_tokens"
    assert len(utterance.tokens) < utterance.max_tokens
    driver.run(90)


def test_upstream_exact(tiny_pack: Path) -> None:
    driver = Driver(tiny_pack, upstream_exact=True)
    heard = driver.speak(1, *SENTENCES)
    assert np.array_equal(driver.speak(2, *SENTENCES), heard)
    driver.open(3, segments(*SENTENCES), speed=1.5)
    driver.run(3)
    failed = driver.ended[3]
    assert isinstance(failed, Failed)
    assert failed.kind == "refuse"
    assert "speed" in failed.message


def test_what_is_said_carries_no_text(driver: Driver) -> None:
    for event in driver.events:
        if not isinstance(event, Audio):
            assert not any(word in repr(event) for word in ("birch", "background", "depth"))


def test_a_recording_in_the_pack_is_a_voice(tiny_pack: Path, tmp_path: Path) -> None:
    """``prompts`` of the metadata, without any command having been run."""
    soundfile = pytest.importorskip("soundfile", reason="needs the cosyvoice extra")
    yaml = pytest.importorskip("yaml")
    folder = tmp_path / "cosyvoice2" / "tiny"
    shutil.copytree(tiny_pack, folder)
    soundfile.write(folder / "bob.wav", speechlike(4, 16_000), 16_000)
    metadata = yaml.safe_load((folder / "metadata.yaml").read_text())
    metadata["prompts"] = {"bob": {"audio": "bob.wav", "text": "Hello, I am Bob."}}
    (folder / "metadata.yaml").write_text(yaml.safe_dump(metadata))
    driver = Driver(folder, slots=1)
    assert "bob" in driver.core.info.voices
    assert np.any(driver.speak(1, SENTENCES[0], voice="bob", mode="zero_shot"))
