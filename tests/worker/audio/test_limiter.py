"""The limiter: transparent below the ceiling, smooth above it, and forgetful."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voicefleet.worker.audio.interpolation import HALF_TAPS, TruePeakDetector
from voicefleet.worker.audio.level import linear
from voicefleet.worker.audio.limiter import MEMORY_MS, TruePeakLimiter, limited
from voicefleet.worker.audio.loudness import true_peak_dbtp
from voicefleet.worker.audio.sliding import sliding_max, sliding_sum


def noise(rate: int, seconds: float, top: float, seed: int = 0) -> np.ndarray:
    """White noise without anything above ``top`` x the rate."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(int(rate * seconds)))
    spectrum[int(2 * top * len(spectrum)) :] = 0
    signal = np.fft.irfft(spectrum)
    return signal / np.abs(signal).max()


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 48_000])
@pytest.mark.parametrize("level", [0.9, 2.0, 8.0])
def test_true_peak_of_loud_noise(rate: int, level: float):
    """Harder than any voice: noise up to 0.35 of the rate."""
    heard = limited(level * noise(rate, 1.0, 0.35), rate, -1.0)
    assert true_peak_dbtp(heard, rate) <= -0.9


def test_what_is_below_the_ceiling_passes_untouched():
    signal = 0.8 * noise(24_000, 1.0, 0.2)
    assert true_peak_dbtp(signal, 24_000) < -1.0
    assert np.array_equal(limited(signal, 24_000, -1.0), signal)


def test_the_gain_has_no_corner():
    """One spike under a steady tone: the tone dips and returns without a step."""
    rate = 48_000
    tone = 0.5 * np.ones(rate)
    spiked = tone.copy()
    spiked[rate // 2] = 2.0
    gain = np.delete(limited(spiked, rate, -1.0), rate // 2) / 0.5
    assert gain.min() < 0.5
    assert np.abs(np.diff(gain)).max() < 0.01
    assert np.abs(np.diff(gain, 2)).max() < 0.001
    away = np.r_[: rate // 2 - rate // 100, rate // 2 + rate // 40 : rate - 1]
    assert np.all(gain[away] == 1.0)


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 48_000])
def test_memory_is_finite(rate: int):
    limiter = TruePeakLimiter(rate, -1.0)
    assert limiter.lookback <= rate * MEMORY_MS // 1000
    signal = 3 * noise(rate, 0.5, 0.3)
    whole = limited(signal, rate, -1.0)
    for begin in (1, 777, len(signal) // 2):
        late = limited(signal[begin:], rate, -1.0)
        settled = begin + limiter.lookback
        assert np.array_equal(late[limiter.lookback :], whole[settled:])


@settings(max_examples=50, deadline=None)
@given(
    rate=st.sampled_from([8_000, 24_000]),
    sizes=st.lists(st.integers(0, 900), min_size=1, max_size=20),
    level=st.sampled_from([0.5, 1.0, 5.0]),
)
def test_chunking_never_shows(rate: int, sizes: list[int], level: float):
    signal = level * noise(rate, 1.0, 0.45, seed=len(sizes))[: sum(sizes)]
    limiter = TruePeakLimiter(rate, -1.0)
    pieces = [limiter.push(piece) for piece in np.split(signal, np.cumsum(sizes)[:-1])]
    heard = np.concatenate([*pieces, limiter.finish()])
    assert np.array_equal(heard, limited(signal, rate, -1.0))


def test_the_detector_overlooks_nothing_above_the_ceiling():
    """Compared with a detector for which every sample is loud."""
    ceiling = linear(-1.0)
    for seed in range(5):
        signal = 1.3 * noise(24_000, 0.3, 0.49, seed)
        found = TruePeakDetector(ceiling).peaks(signal)
        exact = TruePeakDetector(1e-9).peaks(signal)
        above = exact > ceiling
        assert above.any()
        assert np.array_equal(found[above], exact[above])
        assert np.all(found[~above] <= ceiling)


def test_a_loud_sample_at_the_windows_edge():
    signal = np.zeros(100)
    signal[0] = 5.0
    assert len(TruePeakDetector(0.9).peaks(signal)) == 100 - 2 * HALF_TAPS


@given(values=st.lists(st.integers(-50, 50), min_size=1, max_size=80), width=st.integers(1, 80))
def test_sliding_windows(values: list[int], width: int):
    x = np.array(values, dtype=np.float64)
    width = min(width, len(x))
    windows = np.lib.stride_tricks.sliding_window_view(x, width)
    assert np.array_equal(sliding_max(x, width), windows.max(axis=1))
    assert np.array_equal(sliding_sum(x, width), windows.sum(axis=1))
