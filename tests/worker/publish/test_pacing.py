"""Pacing: never further ahead than the lead, and one frame a tick in between."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicefleet.worker.publish.pacing import TICK_S, Pacer, TickClock

LEADS = st.sampled_from([1, 19, 20, 21, 40, 60, 100, 399, 400, 2000])


def publish(pacer: Pacer, tick: int, made: int) -> int:
    """As a publisher does: all that may leave of the frames that are made."""
    room = pacer.due(tick)
    assert room is None or room >= 0
    count = made if room is None else min(room, made)
    pacer.published(count, tick)
    return count


class Listener:
    """Plays one frame each 20 ms from the first on, and waits where there is none."""

    def __init__(self) -> None:
        self.began: float | None = None
        self.played_until = 0.0
        self.received = 0

    def receive(self, count: int, now: float) -> None:
        if not count:
            return
        if self.began is None or self.played_until < now:
            self.began, self.played_until = now, now
        self.played_until += count * TICK_S
        self.received += count

    def ahead_s(self, now: float) -> float:
        return self.played_until - now


@given(
    lead_ms=LEADS,
    moments=st.lists(
        st.tuples(
            st.floats(0.0, 0.2, allow_nan=False),  # seconds since the one before
            st.integers(0, 40),  # frames made meanwhile
        ),
        max_size=60,
    ),
    on_the_tick=st.booleans(),
)
def test_a_listener_is_never_more_than_the_lead_ahead(
    lead_ms: int, moments: list[tuple[float, int]], on_the_tick: bool
) -> None:
    """However late frames are made, and whenever the publisher looks."""
    pacer, listener = Pacer(lead_ms), Listener()
    lead = max(lead_ms, 20) / 1000
    now, made, first = 0.0, 0, True
    for wait, more in moments:
        now += wait
        made += more
        if on_the_tick and not first:  # the first frames leave at once, in the midst of a tick
            now = math.ceil(now / TICK_S - 1e-6) * TICK_S
        count = publish(pacer, int(now / TICK_S + 1e-6), made)
        made -= count
        first = first and not count
        listener.receive(count, now)
        # One whose listener ran dry just before a late look starts anew within a tick.
        assert listener.ahead_s(now) <= lead + (0 if on_the_tick else TICK_S) + 1e-9


@given(lead_ms=LEADS, begun=st.integers(0, 10_000), ticks=st.integers(1, 200))
def test_in_steady_state_one_frame_leaves_a_tick(lead_ms: int, begun: int, ticks: int) -> None:
    pacer = Pacer(lead_ms)
    lead = max(1, lead_ms // 20)
    assert publish(pacer, begun, 10_000) == lead
    assert publish(pacer, begun, 10_000) == 0
    # The first tick ends somewhere within the first frame: it does not count.
    assert publish(pacer, begun + 1, 10_000) == 0
    for tick in range(begun + 2, begun + 2 + ticks):
        assert publish(pacer, tick, 10_000) == 1
        assert publish(pacer, tick, 10_000) == 0


@given(lead_ms=st.sampled_from([100, 200, 400]), late=st.integers(1, 4))
def test_late_ticks_are_caught_up(lead_ms: int, late: int) -> None:
    pacer = Pacer(lead_ms)
    publish(pacer, 0, 1000)
    publish(pacer, 1, 1000)
    assert publish(pacer, 2, 1000) == 1
    assert publish(pacer, 2 + late, 1000) == late
    assert publish(pacer, 3 + late, 1000) == 1


@pytest.mark.parametrize("lead_ms", [20, 100, 400])
def test_a_lead_that_was_used_up_is_given_again(lead_ms: int) -> None:
    pacer = Pacer(lead_ms)
    lead = lead_ms // 20
    publish(pacer, 0, lead)
    # Nothing is made for long: the listener has played all, and is owed nothing for the silence.
    assert pacer.due(100) == lead
    assert publish(pacer, 100, 1000) == lead
    assert publish(pacer, 101, 1000) == 0
    assert publish(pacer, 102, 1000) == 1


def test_a_clock_that_stops_or_goes_back_gives_no_room() -> None:
    pacer = Pacer(100)
    assert publish(pacer, 50, 1000) == 5
    for tick in (50, 49, 0):
        assert publish(pacer, tick, 1000) == 0


def test_without_a_lead_there_is_no_limit() -> None:
    pacer = Pacer(0)
    assert pacer.lead_frames is None
    assert pacer.has_room
    assert pacer.due(0) is None
    pacer.published(100_000, 0)
    assert pacer.due(0) is None
    assert pacer.has_room


def test_has_room_until_the_lead_is_full() -> None:
    pacer = Pacer(60)
    assert pacer.lead_frames == 3
    for count in range(3):
        assert pacer.has_room, count
        publish(pacer, 0, 1)
    assert not pacer.has_room


@pytest.mark.parametrize(("lead_ms", "frames"), [(1, 1), (19, 1), (20, 1), (39, 1), (40, 2)])
def test_a_lead_is_whole_frames_and_at_least_one(lead_ms: int, frames: int) -> None:
    assert Pacer(lead_ms).lead_frames == frames


def test_the_clock_counts_from_its_creation() -> None:
    clock = TickClock()
    assert clock.tick() in (0, 1)
    assert clock.at(5) - clock.at(4) == pytest.approx(TICK_S)
    assert clock.at(clock.tick()) <= time.monotonic()
