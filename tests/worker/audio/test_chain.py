"""The audio chain: exactness, length, framing, marks, loudness, and turns taken up midway."""

import itertools
import math
from collections.abc import Iterable

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from voicefleet.worker.audio.chain import AudioChain, Frame, SegmentStart
from voicefleet.worker.audio.loudness import gain_for, integrated_loudness, true_peak_dbtp
from voicefleet.worker.audio.resume import SETTLING_MS, ResumePoint, resume_point
from voicefleet.worker.engines.protocol import Chunk, EngineError, Mark, Segment

NATIVE_RATES = (16_000, 22_050, 24_000)
SAMPLE_RATES = (8_000, 16_000, 24_000, 48_000)
RATES = [(native, out) for native in NATIVE_RATES for out in SAMPLE_RATES]

Samples = NDArray[np.float32]


def speech_like(rate: int, seconds: float, seed: int = 0) -> Samples:
    """Harmonics of a gliding pitch under a syllable envelope, with breath noise and pauses."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(rate * seconds)) / rate
    phase = 2 * np.pi * np.cumsum(120 + 20 * np.sin(2 * np.pi * 0.7 * t)) / rate
    voice = sum(np.sin(k * phase + 0.3 * k * k) / k**1.2 for k in range(1, 30))
    syllables = np.clip(np.sin(2 * np.pi * 2.3 * t) + 0.3, 0, None) ** 1.5
    signal = (voice + 0.05 * rng.standard_normal(len(t))) * syllables
    return (0.5 * signal / np.abs(signal).max()).astype(np.float32)


def chunks(samples: Samples, cuts: Iterable[int], marks: Iterable[tuple[int, Segment]] = ()):
    """Cut ``samples`` at ``cuts``; each mark rides on the chunk that holds its position."""
    edges = [0, *sorted(cuts), len(samples)]
    waiting = list(marks)
    for begin, end in itertools.pairwise(edges):
        here = [m for m in waiting if m[0] < end or (m[0] == end == len(samples))]
        waiting = [m for m in waiting if m not in here]
        yield Chunk(samples[begin:end], tuple(Mark(at - begin, segment) for at, segment in here))


def frames(chain: AudioChain, pieces: Iterable[Chunk]) -> list[Frame]:
    out = [frame for chunk in pieces for frame in chain.push(chunk)]
    return out + chain.finish()


def decoded(made: list[Frame]) -> NDArray[np.float64]:
    return np.frombuffer(b"".join(frame.pcm for frame in made), "<i2") / 32768


def segment(index: int) -> Segment:
    return Segment(index, f"part {index}", 10 * index, 10 * index + 9)


@pytest.mark.parametrize(("native", "out"), RATES)
def test_any_chunking_gives_the_one_shot_frames(native: int, out: int):
    samples = speech_like(native, 1.3)
    rng = np.random.default_rng(native + out)
    whole = frames(AudioChain(native, out, gain=4), chunks(samples, ()))
    for pieces in (3, 40, 700):
        cuts = rng.integers(0, len(samples) + 1, pieces)
        assert frames(AudioChain(native, out, gain=4), chunks(samples, cuts)) == whole


@settings(max_examples=40, deadline=None)
@given(
    rates=st.sampled_from(RATES),
    length=st.integers(0, 9_000),
    cuts=st.lists(st.floats(0, 1), max_size=30),
    gain=st.sampled_from([0.5, 3.0, 12.0]),
)
def test_chunking_never_shows(rates: tuple[int, int], length: int, cuts: list[float], gain: float):
    samples = speech_like(rates[0], 1.0, seed=length)[3_000 : 3_000 + length]
    cut = frames(
        AudioChain(*rates, gain=gain), chunks(samples, (int(c * len(samples)) for c in cuts))
    )
    assert cut == frames(AudioChain(*rates, gain=gain), chunks(samples, ()))


@pytest.mark.parametrize(("native", "out"), RATES)
def test_below_the_ceiling_the_chain_is_one_shot_resampling(native: int, out: int):
    """No click at any seam: nothing at all is added at one."""
    samples = speech_like(native, 1.0)
    heard = decoded(frames(AudioChain(native, out, gain=0.5), chunks(samples, range(0, 9999, 777))))
    expected = samples.astype(np.float64) * 0.5
    if native != out:
        expected = soxr.resample(expected, native, out, quality="VHQ")
    error = heard[: len(expected)] - expected
    assert np.abs(error).max() <= 0.5001 / 32768


@pytest.mark.parametrize(("native", "out"), RATES)
def test_duration_is_exact_and_only_the_last_frame_is_padded(native: int, out: int):
    spf = out // 50
    for length in (0, 1, 7, native // 50, native // 10, native // 2 + 1, native):
        loud = np.full(length, 0.5, np.float32)
        made = frames(AudioChain(native, out), chunks(loud, range(0, length, 500)))
        # soxr rounds to nearest, halves up.
        total = (2 * length * out + native) // (2 * native)
        assert len(made) == math.ceil(total / spf)
        assert [frame.n for frame in made] == list(range(1, len(made) + 1))
        assert {len(frame.pcm) for frame in made} <= {2 * spf}
        heard = decoded(made)
        assert not heard[total:].any()
        assert np.all(heard[spf // 4 : max(0, total - spf // 4)] > 0)


@pytest.mark.parametrize("out", SAMPLE_RATES)
@pytest.mark.parametrize("loudness", [-30.0, -16.0])
def test_loudness_is_on_target(out: int, loudness: float):
    samples = speech_like(24_000, 6.0)
    gain = gain_for(samples, 24_000, loudness, -1.0)
    heard = decoded(frames(AudioChain(24_000, out, gain=gain), chunks(samples, ())))
    assert abs(integrated_loudness(heard, out) - loudness) <= 1.0


@pytest.mark.parametrize("gain_db", [6.0, 18.0])
@pytest.mark.parametrize(("native", "out"), RATES)
def test_true_peak_stays_below_the_ceiling(native: int, out: int, gain_db: float):
    samples = speech_like(native, 2.0)
    gain = 10 ** (gain_db / 20)
    heard = decoded(frames(AudioChain(native, out, gain=gain), chunks(samples, ())))
    assert -1.5 <= true_peak_dbtp(heard, out) <= -0.9


def test_full_scale_is_clipped_not_wrapped():
    samples = np.full(4_800, 1.5, np.float32)
    heard = decoded(
        frames(AudioChain(24_000, 24_000, gain=1.0, ceiling_dbtp=3.5), chunks(samples, ()))
    )
    assert heard[1_000] == 32767 / 32768


def test_samples_that_are_no_numbers_are_the_engines_error():
    for bad in (np.nan, np.inf):
        samples = np.zeros(480, np.float32)
        samples[99] = bad
        with pytest.raises(EngineError):
            AudioChain(24_000, 48_000).push(Chunk(samples))


@pytest.mark.parametrize(("native", "out"), RATES)
def test_marks_are_on_the_frame_where_their_segment_sounds(native: int, out: int):
    samples = speech_like(native, 2.0)
    rng = np.random.default_rng(1)
    edges = [0, 1, native // 50 - 1, native // 50, native // 25, native, len(samples)]
    at = sorted({*edges, *(int(p) for p in rng.integers(0, len(samples), 20))})
    marks = [(position, segment(i)) for i, position in enumerate(at)]
    made = frames(
        AudioChain(native, out),
        chunks(samples, rng.integers(0, len(samples), 30), marks),
    )
    found = [(frame.n, mark) for frame in made for mark in frame.marks]
    assert [mark for _, mark in found] == [SegmentStart(s, p) for p, s in marks]
    for n, mark in found:
        if mark.native == len(samples):
            assert n == len(made)
        else:
            assert n == mark.native * 50 // native + 1


def test_a_segment_without_audio_at_the_very_end_is_not_lost():
    chain = AudioChain(24_000, 24_000)
    made = chain.push(Chunk(np.zeros(24_000, np.float32), (Mark(0, segment(0)),)))
    made += chain.push(Chunk(np.zeros(0, np.float32), (Mark(0, segment(1)),)))
    made += chain.finish()
    assert [mark.segment.index for mark in made[-1].marks] == [1]


@pytest.mark.parametrize(("native", "out"), RATES)
def test_a_turn_taken_up_midway_gives_the_same_frames(native: int, out: int):
    samples = speech_like(native, 3.0)
    rng = np.random.default_rng(native * 7 + out)
    at = [0, *sorted(int(p) for p in rng.integers(1, len(samples), 12))]
    marks = [(position, segment(i)) for i, position in enumerate(at)]
    gain = 5.0  # 8 dB above the ceiling: the limiter works all the time
    whole = frames(AudioChain(native, out, gain=gain), chunks(samples, (), marks))
    points = [mark.resume_point for frame in whole for mark in frame.marks]
    taken_up = 0
    for n in (int(n) for n in rng.integers(1, len(whole) + 1, 12)):
        start = resume_point([p for p in points if p.native * 50 < n * native], n, native)
        first = start.native if start else 0
        taken_up += start is not None
        rest = samples[first:]
        pieces = chunks(
            rest,
            rng.integers(0, len(rest) + 1, 9),
            [(p - first, s) for p, s in marks if p >= first],
        )
        chain = AudioChain(native, out, gain=gain, start=start, first_frame=n)
        assert frames(chain, pieces) == whole[n - 1 :]
    assert taken_up > 3


def test_resume_point_is_the_latest_that_has_settled():
    rate = 24_000
    points = [ResumePoint(k, 10 * k, k * rate) for k in range(5)]  # one each second
    settled = SETTLING_MS // 20
    assert resume_point(points, 150 + settled, rate) == points[2]
    assert resume_point(points, 151 + settled, rate) == points[3]
    assert resume_point(points, 10_000, rate) == points[4]
    assert resume_point(points, 1, rate) is None
    assert resume_point([], 500, rate) is None
