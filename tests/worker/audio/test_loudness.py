"""Loudness and true peak against signals whose values are known."""

import math

import numpy as np
import pytest

from voicefleet.worker.audio.loudness import gain_for, integrated_loudness, true_peak_dbtp

RATE = 48_000
SECONDS = np.arange(4 * RATE) / RATE


def test_the_reference_tone_of_bs1770():
    """A 997 Hz sine at full scale in one channel reads -3.01 LKFS."""
    assert integrated_loudness(np.sin(2 * np.pi * 997 * SECONDS), RATE) == pytest.approx(
        -3.01, abs=0.1
    )


def test_true_peak_sees_between_the_samples():
    """A sine at a quarter of the rate, sampled 45 degrees off its crests: 3 dB are hidden."""
    tone = np.sin(2 * np.pi * SECONDS * RATE / 4 + np.pi / 4)[:RATE]
    fade = np.clip(np.minimum(np.arange(RATE), np.arange(RATE)[::-1]) / 4_800, 0, 1)
    assert np.abs(tone).max() == pytest.approx(math.sqrt(0.5))
    assert true_peak_dbtp(0.5 * tone * fade, RATE) == pytest.approx(-6.02, abs=0.02)


def test_gain_reaches_the_target_in_hundredths_of_a_decibel():
    tone = 0.1 * np.sin(2 * np.pi * 997 * SECONDS)
    gain = gain_for(tone, RATE, -16.0)
    assert integrated_loudness(gain * tone, RATE) == pytest.approx(-16.0, abs=0.006)
    hundredths = 2000 * math.log10(gain)
    assert hundredths == pytest.approx(round(hundredths), abs=1e-6)


def test_gain_makes_up_for_what_the_limiter_takes():
    rng = np.random.default_rng(0)
    peaky = 0.01 * rng.standard_normal(len(SECONDS))
    peaky[::9_600] = 0.3
    makeup = gain_for(peaky, RATE, -16.0, -1.0) / gain_for(peaky, RATE, -16.0)
    assert 1.0 < makeup <= 10 ** (3 / 20) + 1e-9


@pytest.mark.parametrize("length", [0, 1, 4_000, RATE])
def test_what_cannot_be_measured_keeps_its_level(length: int):
    assert gain_for(np.zeros(length), RATE, -16.0) == 1.0
    assert true_peak_dbtp(np.zeros(length), RATE) == -math.inf


def test_too_short_to_measure_keeps_its_level():
    assert gain_for(np.full(1_000, 0.1), RATE, -16.0) == 1.0
