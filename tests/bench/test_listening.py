"""The engine benches' listeners and loads: what they call late, audible and due."""

import numpy as np
import pytest

from bench.cosyvoice.level import level_of
from bench.cosyvoice.listening import Heard, Playback
from bench.cosyvoice.load import Closed, Poisson
from bench.cosyvoice.texts import CHARS_PER_SECOND, text_of

RATE = 1000


def piece(seconds: float, level: float = 0.5) -> np.ndarray:
    return np.full(round(seconds * RATE), level, dtype=np.float32)


def test_a_piece_that_comes_while_the_one_before_plays_is_in_time() -> None:
    playback = Playback(RATE)
    playback.arrive(10.0, piece(0.2))
    playback.arrive(10.19, piece(0.3))
    assert playback.late_s == []
    assert playback.ends_at == pytest.approx(10.5)
    assert playback.taken(9.0) == 0
    assert playback.taken(10.25) == pytest.approx(250, abs=1)
    assert playback.taken(11.0) == 500


def test_what_comes_late_makes_all_after_it_later_once() -> None:
    playback = Playback(RATE)
    playback.arrive(10.0, piece(0.2))
    playback.arrive(10.5, piece(0.2))  # 0.3 s late
    playback.arrive(10.65, piece(0.2))  # in time now
    playback.arrive(11.0, piece(0.2))  # 0.1 s late
    assert playback.late_s == pytest.approx([0.3, 0.1])
    assert playback.ends_at == pytest.approx(11.2)


def test_audible_is_when_it_is_played_and_not_when_it_came() -> None:
    playback = Playback(RATE)
    quiet = piece(0.3, 0.001)  # -60 dB of the peak
    playback.arrive(10.0, np.concatenate((quiet, piece(0.1))))
    assert playback.audible_at == pytest.approx(10.3)
    late = Playback(RATE)
    late.arrive(10.0, piece(0.1, 0.001))
    late.arrive(10.6, piece(0.1))
    assert late.audible_at == pytest.approx(10.6)
    assert np.isnan(Playback(RATE).audible_at)


def test_a_closed_load_keeps_its_listeners_busy_until_its_time_is_up() -> None:
    load = Closed(3, 10.0)
    load.begin(100.0)
    asked = load.due(102.0)
    assert len(asked) == 3
    assert all(100.0 <= ask.at <= 102.0 for ask in asked)
    assert load.due(103.0) == []
    load.ended(105.0)
    assert load.next_at() == 105.0
    assert len(load.due(105.0)) == 1
    load.ended(110.5)
    assert load.next_at() == float("inf")


def test_an_open_load_asks_whoever_still_listens() -> None:
    load = Poisson(5.0, 200.0)
    load.begin(0.0)
    asked = load.due(200.0)
    assert len(asked) == pytest.approx(1000, rel=0.15)
    assert len({ask.seed for ask in asked}) == len(asked)


def test_texts_take_as_long_as_they_should() -> None:
    for seconds in (2.0, 5.0, 12.0):
        text = text_of(seconds, 3)
        assert len(text) / CHARS_PER_SECOND == pytest.approx(seconds, rel=0.3)
        assert text.endswith(".")


def test_a_level_counts_what_was_late_and_what_failed() -> None:
    def heard(first_at: float, **more: object) -> Heard:
        fields = {
            "asked_at": 0.0,
            "opened_at": 0.1,
            "first_at": first_at,
            "audible_at": first_at,
            "last_at": 2.1,
            "audio_s": 4.0,
            "first_piece_s": 0.2,
            "late_s": (),
        }
        return Heard(**(fields | more))  # type: ignore[arg-type]

    level = level_of(
        "closed",
        3,
        [
            heard(0.2),
            heard(0.4, late_s=(0.05, 0.01)),
            heard(0.3, failed="no"),
            heard(float("nan"), stop_s=0.02),
        ],
        began_at=0.1,
    )
    assert (level.turns, level.failed) == (4, 1)
    assert (level.underruns, level.underrun_turns) == (2, 1)
    assert level.worst_underrun_ms == pytest.approx(50)
    assert level.first is not None
    assert (level.first.count, level.first.p50) == (3, pytest.approx(300))
    assert level.rtf is not None
    assert level.rtf.p50 == pytest.approx(0.5)
    assert level.stop is not None
    assert level.stop.max == pytest.approx(20)
    assert level.x_real_time == pytest.approx(16 / 2.0)
