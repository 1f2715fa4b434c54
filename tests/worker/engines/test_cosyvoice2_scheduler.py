"""Who is served next, in a simulated device: nobody runs dry below capacity, nobody starves.

Pure: the scheduler and what it knows of sequences need no tensors, and the clock is a number.
"""

import random
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voicefleet.worker.engines.cosyvoice2.scheduler import URGENT_S, Scheduler
from voicefleet.worker.engines.cosyvoice2.turn_sequence import Chunking, TurnSequence, Utterance
from voicefleet.worker.engines.protocol import Mark, Segment, TurnSpec

RATE = 24_000
TOKEN = 960
"""Samples of a speech token: 25 a second."""

CHUNKING = Chunking(first=15, hops=(25,), lookahead=3)


def utterance(tokens: int, number: int = 0) -> Utterance:
    marks = (Mark(0, Segment(number, "x", 0, 1)),)
    return Utterance(number, [1], marks, tokens, tokens, CHUNKING)


def sequence(turn: int, *lengths: int, ended: bool = True) -> TurnSequence:
    made: Any = None
    found = TurnSequence(turn, TurnSpec(voice="v", seed=turn), made, made, slot=turn, rate=RATE)
    found.waiting.extend(utterance(length, n) for n, length in enumerate(lengths))
    found.ended = ended
    return found


def speaking(
    turn: int, length: int = 200, decoded: int = 0, ahead_s: float | None = None
) -> TurnSequence:
    """In the middle of an utterance; ``ahead_s`` of audio made at time 0 and not taken."""
    found = sequence(turn, length)
    found.speaking.append(found.waiting.popleft())
    found.speaking[0].tokens += [0] * decoded
    if ahead_s is not None:
        found.started_at = 0.0
        found.produced = round(ahead_s * RATE)
    return found


def scheduler(*batches: int) -> Scheduler:
    return Scheduler(batches or (4,), max_ahead_s=3.0)


def turns(sequences: Iterable[TurnSequence]) -> list[int]:
    return [s.turn for s in sequences]


def test_it_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from voicefleet.worker.engines.cosyvoice2 import scheduler, turn_sequence\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Rendering.


def test_first_chunks_come_first_then_who_runs_dry_next() -> None:
    dry = [speaking(n, decoded=60, ahead_s=s) for n, s in ((1, 0.7), (2, 0.2), (3, 0.5))]
    new = speaking(4, decoded=20)
    assert turns(scheduler(8).to_render([*dry, new], 0.0)) == [4, 2, 3, 1]
    assert turns(scheduler(2).to_render([*dry, new], 0.0)) == [4, 2]


def test_a_session_far_ahead_waits() -> None:
    far, near = speaking(1, decoded=60, ahead_s=3.0), speaking(2, decoded=60, ahead_s=0.1)
    assert turns(scheduler().to_render([far, near], 0.0)) == [2]
    assert scheduler().to_render([far], 0.0) == []
    assert scheduler().to_decode([far], 0.0, 16) == (0, {})
    far.consumed = 1
    assert turns(scheduler().to_render([far], 0.0)) == [1]


def test_time_makes_a_session_urgent() -> None:
    """It plays on while nothing is made for it."""
    first, second = speaking(1, decoded=60, ahead_s=2.0), speaking(2, decoded=60, ahead_s=2.5)
    hungry = speaking(3, decoded=0)
    for one in (first, second):
        one.consumed = one.produced
    assert scheduler().to_render([first, second, hungry], 0.5) == []
    assert turns(scheduler().to_render([first, second, hungry], 2.0 - URGENT_S + 0.01)) == [1, 2]


def test_a_batch_waits_until_it_is_worth_it() -> None:
    ready = [speaking(n, decoded=60, ahead_s=1.5 + n / 10) for n in range(3)]
    decoding = speaking(9, decoded=2, ahead_s=0.1)
    assert scheduler().to_render([*ready, decoding], 0.0) == [], "the device has decoding to do"
    assert turns(scheduler(3).to_render([*ready, decoding], 0.0)) == [0, 1, 2], "full"
    assert turns(scheduler().to_render(ready, 0.0)) == [0, 1, 2], "nobody needs the device"


def test_riders_take_no_more_rows_than_the_urgent_ones_cost() -> None:
    """A batch of sizes 1, 4 and 16: whoever is urgent does not pay for those who are not."""
    sized = scheduler(1, 4, 16)
    new = [speaking(n, decoded=20) for n in range(6)]
    riders = [speaking(10 + n, decoded=60, ahead_s=1.0 + n / 10) for n in range(16)]
    assert turns(sized.to_render([*riders, new[0]], 0.0)) == [0], "alone"
    assert turns(sized.to_render([*riders, *new[:2]], 0.0)) == [0, 1, 10, 11], "rows of 4"
    assert turns(sized.to_render([*riders, *new[:4]], 0.0)) == [0, 1, 2, 3]
    assert len(sized.to_render([*riders, *new[:5]], 0.0)) == 16
    soon = speaking(30, decoded=60, ahead_s=URGENT_S - 0.01)
    assert turns(sized.to_render([*riders, soon], 0.0)) == [30], "who runs dry is urgent too"
    assert len(sized.to_render(riders, 0.0)) == 16, "without anybody urgent they fill a batch"
    sized.batch = 3
    assert turns(sized.to_render([*riders, *new[:2]], 0.0)) == [0, 1, 10], "the device is slow"
    assert turns(sized.to_render([*riders, *new], 0.0)) == [0, 1, 2]


def test_what_lacks_lookahead_is_not_rendered() -> None:
    for decoded, able in ((17, []), (18, [1])):
        assert turns(scheduler().to_render([speaking(1, decoded=decoded)], 0.0)) == able
    short = speaking(2, length=9, decoded=9)
    short.speaking[0].decoded = True
    assert turns(scheduler().to_render([short], 0.0)) == [2]


# Decoding.


def test_a_burst_is_as_long_as_the_most_urgent_needs() -> None:
    new, old = speaking(1, decoded=14), speaking(2, decoded=0, ahead_s=0.5)
    steps, limits = scheduler().to_decode([new, old], 0.0, 16)
    assert steps == 4
    assert limits == {new: 18, old: 4}
    assert scheduler().to_decode([old], 0.0, 16)[0] == 16


def test_others_ride_along() -> None:
    hungry, rider = speaking(1, decoded=10), speaking(2, decoded=30, ahead_s=2.0)
    steps, limits = scheduler().to_decode([hungry, rider], 0.0, 16)
    assert steps == 8
    assert limits == {hungry: 18, rider: 38}
    assert scheduler().to_decode([rider], 0.0, 16) == (0, {}), "nobody needs a step"


def test_nobody_goes_beyond_an_utterances_limit() -> None:
    hungry, short = speaking(1, decoded=10), speaking(2, length=34, decoded=30, ahead_s=1.0)
    assert scheduler().to_decode([hungry, short], 0.0, 16)[1][short] == 34
    last = speaking(3, length=13, decoded=10)
    assert scheduler().to_decode([last], 0.0, 16) == (3, {last: 13}), "not 8 for a full chunk"


def test_the_next_utterance_is_begun_while_the_last_is_rendered() -> None:
    one = sequence(1, 60, 60, 60)
    assert turns(scheduler().to_begin([one], 0.0)) == [1]
    one.speaking.append(one.waiting.popleft())
    assert scheduler().to_begin([one], 0.0) == [], "its decoder is taken"
    one.speaking[0].decoded = True
    one.speaking[0].tokens += [0] * 60
    assert turns(scheduler().to_begin([one], 0.0)) == [1]
    one.speaking.append(one.waiting.popleft())
    one.speaking[1].decoded = True
    assert scheduler().to_begin([one], 0.0) == [], "two at once are enough"


def test_who_has_nothing_to_say_is_begun_first() -> None:
    late = sequence(1, 60)
    late.started_at, late.produced = 0.0, RATE
    assert turns(scheduler().to_begin([late, sequence(2, 60)], 0.0)) == [2, 1]


# A whole device, simulated.


@dataclass
class Device:
    """What the loop does with the scheduler, where each step and each batch takes a given time.

    ``batch_s`` are the seconds of a batch of each size.
    """

    batch_s: dict[int, float]
    step_s: float
    read_s: float
    burst: int = 8
    now: float = 0.0
    sequences: list[TurnSequence] = field(default_factory=list[TurnSequence])
    free_running: set[int] = field(default_factory=set[int])
    made: dict[int, list[tuple[float, int]]] = field(
        default_factory=dict[int, list[tuple[float, int]]]
    )

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(tuple(self.batch_s), max_ahead_s=3.0)

    def open(self, one: TurnSequence) -> None:
        self.sequences.append(one)
        self.made[one.turn] = []

    def step(self) -> bool:
        """One turn of the loop, in the core's order."""
        self._listen()
        chosen = self.scheduler.to_render(self.sequences, self.now)
        begun = self.scheduler.to_begin(self.sequences, self.now)[:4]
        if chosen:
            self.now += next(s for size, s in self.batch_s.items() if size >= len(chosen))
        for one in chosen:
            self._render(one)
        for one in begun:
            one.speaking.append(one.waiting.popleft())
            self.now += self.read_s
        steps, limits = self.scheduler.to_decode(self.sequences, self.now, self.burst)
        assert steps <= self.burst
        self.now += steps * self.step_s
        for one, limit in limits.items():
            found = one.decoding
            assert found is not None
            new = min(steps, limit - len(found.tokens))
            found.tokens += [0] * max(0, new)
            found.decoded = len(found.tokens) >= found.max_tokens
        for one in self.sequences:
            while one.speaking and one.speaking[0].done:
                one.speaking.popleft()
        self.sequences = [one for one in self.sequences if not one.finished]
        return bool(chosen or begun or steps)

    def _render(self, one: TurnSequence) -> None:
        found = one.rendering
        assert found is not None
        before = found.rendered
        found.advance(1)
        samples = TOKEN * (found.rendered - before)
        if samples:
            one.produced += samples
            one.started_at = self.now if one.started_at is None else one.started_at
            self.made[one.turn].append((self.now, samples))

    def _listen(self) -> None:
        for one in self.sequences:
            if one.started_at is not None:
                played = int((self.now - one.started_at) * RATE)
                everything = one.turn in self.free_running
                one.consumed = one.produced if everything else min(one.produced, played)

    def run(self, arrivals: Sequence[tuple[float, TurnSequence]]) -> dict[int, float]:
        """All of them to their end; when each arrived."""
        due = sorted(arrivals, key=lambda arrival: arrival[0])
        came = {one.turn: at for at, one in due}
        while due or self.sequences:
            while due and due[0][0] <= self.now:
                self.open(due.pop(0)[1])
            if not self.step():
                # Nothing to do until somebody listens or comes.
                later = self.now + 0.02
                self.now = min(later, due[0][0]) if due and not self.sequences else later
                assert self.now < 10_000, "a standstill"
        return came

    def dry_s(self, turn: int) -> float:
        """How long the listener waited after the first sample, in all."""
        played_until, waited = 0.0, 0.0
        for at, samples in self.made[turn]:
            if played_until and at > played_until:
                waited += at - played_until
            played_until = max(played_until or at, at) + samples / RATE
        return waited


LENGTHS = st.tuples(st.integers(30, 180), st.lists(st.integers(1, 180), max_size=3))
ARRIVALS = st.lists(st.tuples(st.floats(0, 20), LENGTHS), min_size=1, max_size=4)


def fast() -> Device:
    """A fifth of its time goes to decoding, and four listeners take a fifth more at most."""
    return Device({4: 0.05}, step_s=0.008, read_s=0.005)


@settings(max_examples=60, deadline=None)
@given(ARRIVALS)
def test_below_capacity_nobody_runs_dry(
    arrivals: list[tuple[float, tuple[int, list[int]]]],
) -> None:
    simulated = fast()
    people = [
        (at, sequence(turn, first, *others)) for turn, (at, (first, others)) in enumerate(arrivals)
    ]
    spoken = {one.turn: sum(u.max_tokens for u in one.waiting) for _, one in people}
    came = simulated.run(people)
    for turn, tokens in spoken.items():
        assert sum(n for _, n in simulated.made[turn]) == tokens * TOKEN
        assert simulated.dry_s(turn) == 0.0
        # Its own 18 steps, a burst and a batch for each of the others, and its own batch.
        first_s = simulated.made[turn][0][0] - came[turn]
        assert first_s < 0.008 * (18 + 8 * 4) + 5 * 0.05 + 0.04


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 4), min_size=12, max_size=40), st.integers(1, 8))
def test_above_capacity_everybody_is_served(starts: list[float], batch: int) -> None:
    """Late, but in turn: of those who came together nobody's first chunk is last by far."""
    simulated = Device({batch: batch / 16}, step_s=0.02, read_s=0.005)
    people = [(at, sequence(turn, 100)) for turn, at in enumerate(starts)]
    came = simulated.run(people)
    for turn, at in came.items():
        assert sum(n for _, n in simulated.made[turn]) == 100 * TOKEN
        first_s = simulated.made[turn][0][0] - at
        # First chunks come before all else: all of those ahead of it, in batches.
        batches = -(-len(starts) // batch) + 3
        assert first_s < batches * (batch / 16 + 10 * 0.02) + len(starts) * 0.005 + 1.0


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.lists(st.floats(0, 10), min_size=1, max_size=4))
def test_who_takes_everything_at_once_starves_nobody(free: int, starts: list[float]) -> None:
    """Turns that are not paced get what is left over by those that are played as they come."""
    simulated = fast()
    simulated.free_running = {100 + n for n in range(free)}
    endless = [(0.0, sequence(100 + n, *[180] * 6)) for n in range(free)]
    paced = [(at, sequence(turn, 150, 150)) for turn, at in enumerate(starts)]
    simulated.run([*endless, *paced])
    for turn in range(len(starts)):
        assert simulated.dry_s(turn) == 0.0
    for n in range(free):
        assert sum(samples for _, samples in simulated.made[100 + n]) == 6 * 180 * TOKEN


def test_batches_are_worth_it() -> None:
    """Sixteen for whom there is no time one by one: they are rendered together."""
    simulated = Device({16: 0.06}, step_s=0.008, read_s=0.002)
    rendered: list[int] = []
    choose = simulated.scheduler.to_render

    def counted(sequences: Iterable[TurnSequence], now: float) -> list[TurnSequence]:
        chosen = choose(sequences, now)
        if chosen:
            rendered.append(len(chosen))
        return chosen

    simulated.scheduler.to_render = counted
    simulated.run([(0.05 * turn, sequence(turn, 500)) for turn in range(16)])
    assert all(simulated.dry_s(turn) == 0.0 for turn in range(16))
    assert sum(rendered) == 16 * 21
    assert len(rendered) < sum(rendered) / 2


SIZES = {1: 0.022, 4: 0.034, 16: 0.068}
"""Seconds of a solve and a window on an H100, as estimated before any was at hand."""


def conversations(count: int, seed: int) -> list[tuple[float, TurnSequence]]:
    """``count`` people who are answered for half a minute, with pauses."""
    chance = random.Random(seed)
    arrivals: list[tuple[float, TurnSequence]] = []
    for _ in range(count):
        at = chance.uniform(0, 6)
        while at < 30:
            lengths = [chance.randint(40, 250) for _ in range(chance.randint(1, 3))]
            arrivals.append((at, sequence(len(arrivals), *lengths)))
            at += sum(lengths) / 25 + chance.uniform(0.2, 1.5)
    return arrivals


def first_audio(batches: Sequence[int], count: int, seed: int) -> list[float]:
    """How long each waited for the first sample, ascending. Nobody runs dry.

    ``batches`` are the sizes that the scheduler knows of; what they cost is always the same.
    """
    simulated = Device(SIZES, step_s=0.00175, read_s=0.002)
    simulated.scheduler = Scheduler(batches, max_ahead_s=3.0)
    came = simulated.run(conversations(count, seed))
    assert all(simulated.dry_s(turn) == 0.0 for turn in came)
    return sorted(simulated.made[turn][0][0] - at for turn, at in came.items())


@pytest.mark.parametrize("seed", range(3))
def test_first_chunks_that_pay_for_themselves_alone_come_sooner(seed: int) -> None:
    """64 sequences, against batches that riders always fill up to 16."""
    capped, filled = (first_audio(sizes, 64, seed) for sizes in (tuple(SIZES), (16,)))
    for share in (0.5, 0.95):
        at = int(share * len(capped))
        assert capped[at] < 0.85 * filled[at]
