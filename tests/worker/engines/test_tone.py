"""The synthetic engine: deterministic, cheap, honest."""

from collections.abc import AsyncIterator

import anyio
import numpy as np
import pytest

from tests.harness import ROOT
from voicefleet.worker.audio.loudness import gain_for, integrated_loudness
from voicefleet.worker.engines.protocol import (
    CannotSpeakError,
    Chunk,
    EngineError,
    EngineLoadError,
    Segment,
    TurnSpec,
)
from voicefleet.worker.engines.tone.engine import RATE, ToneEngine
from voicefleet.worker.engines.tone.family import ToneConfig
from voicefleet.worker.voicepacks import voicepack

pytestmark = pytest.mark.anyio

PACK = voicepack.read(ROOT / "voicepacks" / "tone" / "test")
TEXTS = ("One sentence to begin with.", "A second one, which is longer than that.", "And a third.")
SPEC = TurnSpec(voice="tone-a", seed=7)


async def engine(**settings: float) -> ToneEngine:
    made = ToneEngine(PACK, ToneConfig(**settings))  # pyright: ignore[reportArgumentType]
    await made.load()
    return made


async def segments(*indices: int) -> AsyncIterator[Segment]:
    for index in indices:
        yield Segment(index, TEXTS[index], 0, len(TEXTS[index]))


async def speak(tone: ToneEngine, *indices: int, spec: TurnSpec = SPEC) -> list[Chunk]:
    return [chunk async for chunk in tone.speak(spec, segments(*indices))]


def joined(chunks: list[Chunk]) -> np.ndarray:
    return np.concatenate([chunk.samples for chunk in chunks])


async def test_samples_of_a_segment_depend_on_nothing_before_it() -> None:
    tone = await engine()
    whole, first = joined(await speak(tone, 0, 1, 2)), joined(await speak(tone, 0))
    assert np.array_equal(whole[len(first) :], joined(await speak(await engine(), 1, 2)))


async def test_chunk_size_does_not_change_the_signal() -> None:
    small, large = await engine(chunk_ms=20), await engine(chunk_ms=500)
    assert np.array_equal(joined(await speak(small, 0, 1)), joined(await speak(large, 0, 1)))


async def test_seed_voice_and_text_change_the_signal() -> None:
    tone = await engine()
    usual = joined(await speak(tone, 0))
    for spec in (TurnSpec(voice="tone-a", seed=8), TurnSpec(voice="tone-b", seed=7)):
        assert not np.array_equal(usual, joined(await speak(tone, 0, spec=spec)))
    assert not np.array_equal(usual, joined(await speak(tone, 1))[: len(usual)])


async def test_duration_follows_the_text_and_the_speed() -> None:
    tone = await engine()
    usual = len(joined(await speak(tone, 1))) / RATE
    fast = (
        len(joined(await speak(tone, 1, spec=TurnSpec(voice="tone-a", seed=7, speed=2.0)))) / RATE
    )
    assert usual / len(TEXTS[1]) == pytest.approx(0.067, abs=0.005)
    assert fast == pytest.approx(usual / 2, abs=1e-3)


async def test_every_segment_opens_with_its_mark_and_closes_in_silence() -> None:
    tone = await engine()
    chunks = await speak(tone, 0, 1, 2)
    marks = [mark for chunk in chunks for mark in chunk.marks]
    assert [mark.segment.index for mark in marks] == [0, 1, 2]
    assert all(mark.offset == 0 for mark in marks)
    for index in range(3):
        audio = joined(await speak(tone, index))
        assert audio[0] == 0
        assert not np.any(audio[-RATE // 20 :])


@pytest.mark.parametrize("voice", ["tone-a", "tone-b"])
async def test_no_click_anywhere(voice: str) -> None:
    audio = joined(await speak(await engine(), 0, 1, 2, spec=TurnSpec(voice=voice, seed=1)))
    assert np.max(np.abs(np.diff(audio, prepend=0, append=0))) < 0.05


@pytest.mark.parametrize("voice", ["tone-a", "tone-b"])
async def test_level_leaves_the_limiter_nothing_to_do(voice: str) -> None:
    audio = joined(await speak(await engine(), *[0, 1, 2] * 3, spec=TurnSpec(voice=voice, seed=1)))
    assert -21 < integrated_loudness(audio, RATE) < -15
    peak = float(np.max(np.abs(audio))) * gain_for(audio, RATE, -16.0)
    assert 20 * np.log10(peak) <= -7


async def test_simulated_speed_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    tone = await engine(rtf=0.5, latency_ms=100)
    monkeypatch.setattr(anyio, "sleep", sleep)
    seconds = len(joined(await speak(tone, 0, 1))) / RATE
    assert waits[0] == pytest.approx(0.1 + 0.5 * 0.2)
    assert sum(waits) == pytest.approx(0.1 + 0.5 * seconds)


async def test_cancellation_is_noticed_even_without_waiting() -> None:
    async def endless() -> AsyncIterator[Segment]:
        while True:
            yield Segment(0, TEXTS[0], 0, 1)

    tone = await engine()
    with anyio.fail_after(10), anyio.move_on_after(0.05) as scope:
        async for _ in tone.speak(SPEC, endless()):
            pass
    assert scope.cancelled_caught


async def test_info_says_that_it_is_no_voice() -> None:
    info = (await engine()).info
    assert info.synthetic
    assert info.native_rate == PACK.native_rate == RATE
    assert set(PACK.voices) == set(info.voices)


async def test_refusals() -> None:
    tone = await engine()
    for spec in (
        TurnSpec(voice="joe", seed=1),
        TurnSpec(voice="tone-a", seed=1, mode="sft"),
        TurnSpec(voice="tone-a", seed=1, instruct="whisper"),
    ):
        with pytest.raises(CannotSpeakError):
            await speak(tone, 0, spec=spec)
    await tone.unload()
    await tone.unload()
    with pytest.raises(EngineError, match="not loaded"):
        _ = tone.info
    with pytest.raises(EngineLoadError, match="tone-a, tone-b"):
        from msgspec.structs import replace

        await ToneEngine(replace(PACK, default_voice="joe"), ToneConfig()).load()
