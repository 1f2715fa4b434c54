"""The outbox numbers entries without a gap, whatever the server replies, forgets or refuses."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicefleet.wire.link import Argument
from voicefleet.worker.publish import outbox as module
from voicefleet.worker.publish.outbox import (
    FREE_RUN_FRAMES,
    READ_AHEAD_FRAMES,
    Opening,
    Outbox,
    PublishOutcome,
)
from voicefleet.worker.publish.retention import FASTER_KEPT_S, Retention, entries_to_keep
from voicefleet.worker.store.clock import ServerClock
from voicefleet.worker.store.scripts.script import SessionKeys
from voicefleet.worker.store.scripts.session import Append, Finish
from voicefleet.worker.synthesis.turn import TurnFrame

pytestmark = pytest.mark.anyio

KEYS = SessionKeys("lease", "audio", "session", "spoken", "refused")
RETENTION = Retention(audio_ttl_s=120.0, audio_window_s=60.0, resend_window_s=5.0)
START = {"request": "r", "voice": "tone-a"}


def numbers(call: Append | Finish) -> list[int]:
    assert isinstance(call, Append)
    return list(range(call.first, call.first + len(call.entries)))


class Server:
    """One turn on a server that follows ``append.lua`` and ``finish.lua``."""

    def __init__(self, last: int = -1) -> None:
        self.stream: dict[int, Sequence[Argument]] = {n: ["earlier"] for n in range(last + 1)}
        self.ended: int | None = None
        self.fault = 0

    @property
    def last(self) -> int:
        return next(reversed(self.stream), -1)

    def run(self, calls: Sequence[Append | Finish]) -> list[int]:
        return [self.fault or self._run(call) for call in calls]

    def _run(self, call: Append | Finish) -> int:
        return self._append(call) if isinstance(call, Append) else self._finish(call)

    def forget(self, count: int) -> None:
        for _ in range(count):
            self.stream.popitem()
        self.ended = None

    def _append(self, call: Append) -> int:
        if call.first <= self.last + 1:
            for n, entry in zip(numbers(call), call.entries, strict=True):
                if n > self.last:
                    self.stream[n] = entry
        return self.last

    def _finish(self, call: Finish) -> int:
        if self.ended is not None:
            return call.number
        if self.last != call.number - 1 and not (call.number == 1 and self.last == -1):
            return self.last
        self.ended = call.number
        return call.number


def box(
    lead_ms: int = 0, last: int = -1, text_key: str | None = None, last_delivered: int = -1
) -> Outbox:
    opening = Opening(
        session="s",
        keys=KEYS,
        text_key=text_key,
        request="r",
        epoch="77",
        turn=3,
        last=last,
        added_ms=0,
        last_delivered=last_delivered,
    )
    return Outbox(opening, lead_ms, RETENTION, ServerClock())


def frames(first: int, count: int) -> list[TurnFrame]:
    return [TurnFrame(n, b"frame %d" % n) for n in range(first, first + count)]


def flush(outbox: Outbox, server: Server, tick: int = 0) -> list[Any]:
    """The calls that leave at a tick: ``Append``, then ``Finish``."""
    calls = outbox.collect(tick)
    if calls:
        outbox.confirm(server.run(calls))
    return calls


def sent(calls: Sequence[Append | Finish]) -> list[int]:
    return [n for call in calls if isinstance(call, Append) for n in numbers(call)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The outbox's clock in seconds, which only the test moves."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


class TestNumbers:
    async def test_numbers_run_from_the_start_to_the_end_entry(self) -> None:
        outbox, server = box(), Server()
        outbox.start(START)
        await outbox.put(frames(1, 3))
        outbox.close("completed")
        append, finish = flush(outbox, server)
        assert (append.epoch, append.turn, append.keys) == ("77", 3, KEYS)
        assert numbers(append) == [0, 1, 2, 3]
        assert append.entries[0] == ["event", "start", "request", "r", "voice", "tone-a"]
        assert append.entries[1] == ("pcm", b"frame 1")
        assert finish.number == 4
        assert finish.end["reason"] == "completed"
        assert finish.end["frames"] == 3
        assert "error" not in finish.end
        assert await outbox.settled() is PublishOutcome.ENDED
        assert outbox.frames == 3
        assert outbox.collect(0) == []

    async def test_the_start_is_sent_first_and_alone(self) -> None:
        outbox, server = box(lead_ms=100), Server()
        outbox.start(START)
        assert sent(flush(outbox, server)) == [0]
        await outbox.put(frames(1, 1))
        assert sent(flush(outbox, server)) == [1]

    async def test_text_and_resume_points_go_with_their_frame(self) -> None:
        outbox, server = box(lead_ms=40), Server()
        outbox.start(START)
        await outbox.put([TurnFrame(1, b"x", "Hello.", b"[1]"), *frames(2, 1)])
        await outbox.put([TurnFrame(3, b"y", "There.", b"[2]")])
        (first,) = flush(outbox, server)
        assert first.entries[1:] == [("pcm", b"x", "text", "Hello."), ("pcm", b"frame 2")]
        assert first.resume == b"[1]"
        (second,) = flush(outbox, server, 2)
        assert second.entries == [("pcm", b"y", "text", "There.")]
        assert second.resume == b"[2]"

    @pytest.mark.parametrize("last", [0, 5])
    async def test_a_resumed_turn_continues_the_numbers(self, last: int) -> None:
        outbox, server = box(last=last), Server(last)
        outbox.start(START)  # it stands already
        assert outbox.frames == last
        await outbox.put(frames(last + 1, 2))
        outbox.close("completed")
        append, finish = flush(outbox, server)
        assert numbers(append) == [last + 1, last + 2]
        assert finish.number == last + 3
        assert server.ended == last + 3
        assert outbox.first_audio_ms is None or last == 0

    @pytest.mark.parametrize("started", [False, True])
    async def test_an_unspoken_turn_has_only_an_end(self, started: bool) -> None:
        outbox, server = box(), Server()
        if started:
            outbox.start(START)
            await outbox.put(frames(1, 5))
        outbox.end_now("rejected", "voice: no such")
        *_, finish = flush(outbox, server)
        assert (finish.number, finish.end["frames"]) == (1, 0)
        assert (finish.end["reason"], finish.end["error"]) == ("rejected", "voice: no such")
        assert server.stream == {}
        assert await outbox.settled() is PublishOutcome.ENDED

    async def test_a_started_turn_without_frames_ends_with_number_one(self) -> None:
        outbox, server = box(), Server()
        outbox.start(START)
        flush(outbox, server)
        outbox.end_now("stopped")
        (finish,) = flush(outbox, server)
        assert (finish.number, finish.end["frames"], server.last) == (1, 0, 0)

    async def test_the_end_of_a_streamed_turn_names_its_text_stream(self) -> None:
        with_text, without = box(text_key="text"), box()
        for outbox, keys in ((with_text, [*KEYS, "text"]), (without, [*KEYS])):
            outbox.end_now("stopped")
            (finish,) = outbox.collect(0)
            assert finish.key_list() == keys


class TestPacing:
    async def test_the_lead_is_sent_at_once_and_then_one_frame_a_tick(self) -> None:
        outbox, server = box(lead_ms=100), Server()
        outbox.start(START)
        await outbox.put(frames(1, 20))
        assert sent(flush(outbox, server, 7)) == [0, 1, 2, 3, 4, 5]
        assert sent(flush(outbox, server, 7)) == []
        assert sent(flush(outbox, server, 8)) == []
        assert [sent(flush(outbox, server, tick)) for tick in (9, 10, 12)] == [[6], [7], [8, 9]]

    async def test_without_a_lead_every_frame_is_sent_at_once(self) -> None:
        outbox, server = box(), Server()
        await outbox.put(frames(0, 90))
        assert sent(flush(outbox, server)) == list(range(90))

    async def test_the_end_is_sent_with_the_last_frame(self) -> None:
        outbox, server = box(lead_ms=20, last=0), Server(0)
        await outbox.put(frames(1, 2))
        outbox.close("completed")
        assert [isinstance(call, Append) for call in flush(outbox, server, 0)] == [True]
        assert [isinstance(call, Append) for call in flush(outbox, server, 2)] == [True, False]

    async def test_one_batch_is_in_flight_at_a_time(self) -> None:
        outbox = box()
        await outbox.put(frames(0, 1))
        assert outbox.collect(0)
        await outbox.put(frames(1, 1))
        assert outbox.collect(0) == []
        outbox.confirm([0])
        assert sent(outbox.collect(0)) == [1]


class TestPauseAndResume:
    async def test_no_frame_is_sent_and_then_the_next_one(self) -> None:
        outbox, server = box(lead_ms=100, last=0), Server(0)
        await outbox.put(frames(1, 20))
        flush(outbox, server, 0)
        outbox.pause()
        (told,) = flush(outbox, server, 50)
        assert told.entries == []
        assert told.record["state"] == "paused"
        assert flush(outbox, server, 100) == []
        outbox.resume()
        (going_on,) = flush(outbox, server, 100)
        assert going_on.record["state"] == "speaking"
        assert numbers(going_on) == [6, 7, 8, 9, 10]

    async def test_a_paused_turn_still_starts(self) -> None:
        outbox, server = box(), Server()
        outbox.pause()
        outbox.start(START)
        await outbox.put(frames(1, 3))
        assert sent(flush(outbox, server)) == [0]

    async def test_a_paused_turn_does_not_end_with_frames_unsent(self) -> None:
        outbox, server = box(last=0), Server(0)
        await outbox.put(frames(1, 3))
        outbox.close("completed")
        outbox.pause()
        assert all(isinstance(call, Append) for call in flush(outbox, server))
        assert server.ended is None
        outbox.resume()
        flush(outbox, server)
        assert server.ended == 4

    async def test_a_refused_batch_is_not_sent_again_while_paused(self) -> None:
        """By a full server, for instance: no reader has it."""
        outbox, server = box(lead_ms=100, last=0), Server(0)
        await outbox.put(frames(1, 20))
        flush(outbox, server, 0)
        for tick in range(2, 60):
            assert sent(outbox.collect(tick))
            outbox.refused()
        outbox.pause()
        (told,) = flush(outbox, server, 60)
        assert told.entries == []
        assert server.last == outbox.frames == 5
        outbox.resume()
        assert sent(flush(outbox, server, 61)) == [6, 7, 8, 9, 10]  # a lead, not all that is due

    async def test_an_unanswered_batch_is_not_sent_again_while_paused(self) -> None:
        outbox, server = box(lead_ms=100, last=0), Server(0)
        await outbox.put(frames(1, 20))
        flush(outbox, server, 0)
        outbox.collect(4)
        outbox.unanswered()
        outbox.pause()
        assert sent(flush(outbox, server, 10)) == []
        outbox.resume()
        assert sent(flush(outbox, server, 10))[:3] == [6, 7, 8]

    async def test_forgotten_frames_are_sent_again_while_paused(self) -> None:
        outbox, server = box(lead_ms=100, last=0), Server(0)
        await outbox.put(frames(1, 20))
        flush(outbox, server, 0)
        server.forget(3)
        outbox.pause()
        flush(outbox, server, 10)
        assert sent(flush(outbox, server, 10)) == [3, 4, 5]

    async def test_a_refused_change_of_the_record_is_sent_again(self) -> None:
        outbox, server = box(last=0), Server(0)
        await outbox.put([TurnFrame(1, b"x", None, b"[1]")])
        outbox.pause()
        (lost,) = outbox.collect(0)
        outbox.refused()
        (told,) = flush(outbox, server)
        for call in (lost, told):
            assert call.record.pop("updated_ms")
        assert told.record == lost.record
        outbox.resume()
        (lost,) = outbox.collect(0)
        outbox.refused()
        (told,) = flush(outbox, server)
        assert (told.resume, told.record) == (b"[1]", lost.record)

    async def test_a_paused_turn_can_end_now(self) -> None:
        outbox, server = box(last=0), Server(0)
        await outbox.put(frames(1, 3))
        outbox.pause()
        outbox.end_now("stopped", "pause_timeout")
        finish = flush(outbox, server)[-1]
        assert (finish.number, finish.end["error"]) == (1, "pause_timeout")

    async def test_a_second_pause_changes_nothing(self) -> None:
        flushes: list[str] = []
        outbox, server = box(last=0), Server(0)
        outbox.request_flush = lambda: flushes.append("request_flush")
        outbox.resume()
        assert not flushes
        outbox.pause()
        outbox.pause()
        assert len(flushes) == 1
        flush(outbox, server)
        outbox.pause()
        assert flush(outbox, server) == []


class TestTheEnd:
    async def test_frames_after_it_are_ignored(self) -> None:
        outbox, server = box(last=0), Server(0)
        await outbox.put(frames(1, 2))
        outbox.close("completed")
        assert outbox.ending
        await outbox.put(frames(3, 2))
        outbox.close("failed")
        append, finish = flush(outbox, server)
        assert numbers(append) == [1, 2]
        assert finish.end["reason"] == "completed"

    async def test_end_now_drops_unsent_frames(self) -> None:
        outbox, server = box(lead_ms=60, last=0), Server(0)
        await outbox.put(frames(1, 10))
        flush(outbox, server)
        outbox.end_now("interrupted")
        (finish,) = flush(outbox, server)
        assert (finish.number, finish.end["reason"]) == (4, "interrupted")
        assert server.ended == 4

    async def test_end_now_waits_for_forgotten_frames(self) -> None:
        """A reader that has frame 6 continues after it, and would never read an end before it."""
        outbox, server = box(last=2, last_delivered=6), Server(2)
        outbox.pause()
        assert outbox.must_replay
        assert outbox.end_now("stopped")
        assert sent(flush(outbox, server)) == []
        await outbox.put(frames(3, 2))
        assert outbox.must_replay
        await outbox.put(frames(5, 4))
        assert not outbox.must_replay
        calls = flush(outbox, server)
        assert sent(calls)[-1] == 6
        assert (calls[-1].number, calls[-1].end["reason"]) == (7, "stopped")
        assert server.ended == 7

    async def test_end_now_keeps_frames_that_readers_may_have(self) -> None:
        outbox, server = box(lead_ms=60, last=0, last_delivered=5), Server(0)
        await outbox.put(frames(1, 10))
        flush(outbox, server)
        outbox.end_now("stopped")
        for tick in range(1, 10):
            flush(outbox, server, tick)
        assert server.ended == 6

    async def test_end_now_replaces_a_close_that_waits(self) -> None:
        outbox, server = box(lead_ms=60, last=0), Server(0)
        await outbox.put(frames(1, 10))
        outbox.close("completed")
        flush(outbox, server)
        outbox.end_now("stopped")
        (finish,) = flush(outbox, server)
        assert (finish.number, finish.end["reason"]) == (4, "stopped")

    async def test_end_now_counts_frames_in_flight(self) -> None:
        outbox, server = box(lead_ms=60, last=0), Server(0)
        await outbox.put(frames(1, 10))
        calls = outbox.collect(0)
        outbox.end_now("stopped")
        assert outbox.collect(0) == []
        outbox.confirm(server.run(calls))
        (finish,) = flush(outbox, server)
        assert finish.number == server.ended == 4

    async def test_end_now_sends_lost_frames_again(self) -> None:
        outbox, server = box(lead_ms=60, last=0), Server(0)
        await outbox.put(frames(1, 10))
        outbox.collect(0)
        outbox.end_now("stopped")
        outbox.unanswered()
        append, finish = flush(outbox, server)
        assert numbers(append) == [1, 2, 3]
        assert finish.number == server.ended == 4

    @pytest.mark.parametrize("order", ["refused first", "cut first"])
    @pytest.mark.parametrize("paused", [False, True])
    async def test_end_now_ends_before_refused_frames(self, order: str, paused: bool) -> None:
        outbox, server = box(lead_ms=60, last=0), Server(0)
        await outbox.put(frames(1, 10))
        flush(outbox, server)
        outbox.collect(3)
        if paused:
            outbox.pause()
        if order == "refused first":
            outbox.refused()
            outbox.end_now("stopped")
        else:
            outbox.end_now("stopped")
            outbox.refused()
        calls = flush(outbox, server, 20)
        assert sent(calls) == []
        assert calls[-1].number == server.ended == 4
        assert outbox.frames == 3

    async def test_end_now_of_a_paused_turn_sends_frames_that_readers_may_have(self) -> None:
        """Its answer was lost: who has read it would never read an end below."""
        outbox, server = box(lead_ms=60, last=0), Server(0)
        await outbox.put(frames(1, 10))
        outbox.collect(0)
        outbox.pause()
        outbox.unanswered()
        outbox.end_now("stopped")
        append, finish = flush(outbox, server)
        assert numbers(append) == [1, 2, 3]
        assert finish.number == server.ended == 4

    async def test_end_now_is_too_late_for_an_end_in_flight(self) -> None:
        outbox, server = box(last=0), Server(0)
        await outbox.put(frames(1, 2))
        outbox.close("completed")
        calls = outbox.collect(0)
        outbox.end_now("stopped")
        outbox.confirm(server.run(calls))
        assert await outbox.settled() is PublishOutcome.ENDED
        assert calls[-1].end["reason"] == "completed"

    @pytest.mark.parametrize("arrived", [False, True])
    async def test_an_end_without_a_reply_is_sent_again(self, arrived: bool) -> None:
        outbox, server = box(last=0), Server(0)
        await outbox.put(frames(1, 2))
        outbox.close("completed")
        calls = outbox.collect(0)
        if arrived:
            server.run(calls)
        outbox.unanswered()
        again = flush(outbox, server)
        assert sent(again) == [1, 2]
        assert await outbox.settled() is PublishOutcome.ENDED
        assert server.ended == 3
        assert sorted(server.stream) == [0, 1, 2]

    async def test_the_first_outcome_stands(self) -> None:
        outbox = box()
        outbox.settle(PublishOutcome.HANDED_OVER)
        outbox.settle(PublishOutcome.ENDED)
        outbox.end_now("stopped")
        await outbox.put(frames(0, 1))
        assert await outbox.settled() is PublishOutcome.HANDED_OVER
        assert outbox.collect(0) == []


class TestAnswers:
    @pytest.mark.parametrize(
        ("answer", "outcome"), [(-2, PublishOutcome.FENCED), (-3, PublishOutcome.FORGOTTEN)]
    )
    @pytest.mark.parametrize("ends", [False, True])
    async def test_the_reply_of_a_lost_lease_ends_publishing(
        self, answer: int, outcome: PublishOutcome, ends: bool
    ) -> None:
        outbox, server = box(last=0), Server(0)
        await outbox.put(frames(1, 2))
        if ends:
            outbox.close("completed")
        server.fault = answer
        flush(outbox, server)
        assert await outbox.settled() is outcome

    async def test_the_reply_of_a_gap_has_the_rest_sent_again(self) -> None:
        outbox, server = box(last=0), Server(0)
        await outbox.put(frames(1, 10))
        flush(outbox, server)
        server.forget(4)
        await outbox.put(frames(11, 1))
        calls = outbox.collect(0)
        assert sent(calls) == [11]
        assert outbox.confirm(server.run(calls))  # at once, not at the next tick
        assert sent(flush(outbox, server)) == [7, 8, 9, 10, 11]
        assert sorted(server.stream) == list(range(12))

    async def test_a_missing_start_is_sent_again(self) -> None:
        outbox, server = box(), Server()
        outbox.start(START)
        await outbox.put(frames(1, 3))
        flush(outbox, server)
        server.forget(4)
        await outbox.put(frames(4, 1))
        flush(outbox, server)
        assert sent(flush(outbox, server)) == [0, 1, 2, 3, 4]
        assert server.stream[0][:2] == ["event", "start"]

    async def test_a_gap_before_the_end_is_filled_first(self) -> None:
        outbox, server = box(last=0), Server(0)
        await outbox.put(frames(1, 10))
        flush(outbox, server)
        server.forget(2)
        outbox.close("completed")
        assert [isinstance(call, Append) for call in flush(outbox, server)] == [False]
        append, finish = flush(outbox, server)
        assert numbers(append) == [9, 10]
        assert finish.number == server.ended == 11

    async def test_a_loss_of_more_than_was_kept_ends_publishing(self) -> None:
        outbox, server = box(last=0), Server(0)
        kept = int(RETENTION.resend_window_s * 50)
        for n in range(1, 2 * kept, 50):
            await outbox.put(frames(n, 50))
            flush(outbox, server)
        server.forget(kept)
        await outbox.put(frames(server.last + kept + 1, 1))
        flush(outbox, server)
        assert len(flush(outbox, server)[0].entries) == kept + 1
        assert not outbox.ending
        server.forget(kept + 5)
        await outbox.put(frames(1000, 1))
        flush(outbox, server)
        assert await outbox.settled() is PublishOutcome.FORGOTTEN

    async def test_a_batch_without_a_reply_is_sent_again(self) -> None:
        outbox, server = box(lead_ms=100, last=0), Server(0)
        await outbox.put(frames(1, 20))
        (lost,) = outbox.collect(0)
        outbox.unanswered()
        (again,) = flush(outbox, server, 0)
        assert again.entries == lost.entries
        assert numbers(again) == numbers(lost)
        # What was counted as published stays so: the lead is not given twice.
        assert sent(flush(outbox, server, 1)) == []
        assert sent(flush(outbox, server, 2)) == [6]


class TestBackpressure:
    @pytest.mark.parametrize(
        ("lead_ms", "paused", "capacity"),
        [
            (100, False, READ_AHEAD_FRAMES),
            (4000, False, 200),
            (0, False, FREE_RUN_FRAMES),
            (100, True, 5),
            (20, True, 1),
        ],
    )
    async def test_put_waits_while_the_turn_is_far_ahead(
        self, lead_ms: int, paused: bool, capacity: int
    ) -> None:
        outbox, server = box(lead_ms=lead_ms, last=0), Server(0)
        if paused:
            outbox.pause()
        await outbox.put(frames(1, capacity - 1))
        await outbox.put(frames(capacity, 1))
        taken = anyio.Event()
        async with anyio.create_task_group() as tasks:

            async def put() -> None:
                await outbox.put(frames(capacity + 1, 1))
                taken.set()

            tasks.start_soon(put)
            await anyio.wait_all_tasks_blocked()
            assert not taken.is_set()
            outbox.resume()
            left = sent(flush(outbox, server))
            await anyio.wait_all_tasks_blocked()
            assert taken.is_set()
        for tick in range(1, 1000):
            left += sent(flush(outbox, server, tick))
        assert left == list(range(1, capacity + 2))

    @pytest.mark.parametrize("how", ["end_now", "settle"])
    async def test_the_end_wakes_a_waiting_put(self, how: str) -> None:
        outbox = box(lead_ms=20, last=0)
        outbox.pause()  # which leaves room for the lead alone
        await outbox.put(frames(1, 1))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outbox.put, frames(2, 1))
            await anyio.wait_all_tasks_blocked()
            if how == "end_now":
                outbox.end_now("stopped")
            else:
                outbox.settle(PublishOutcome.FENCED)
        assert outbox.ending

    async def test_a_frame_that_is_due_requests_a_flush(self) -> None:
        outbox, server = box(lead_ms=100, last=0), Server(0)
        flushes: list[str] = []
        outbox.request_flush = lambda: flushes.append("request_flush")
        await outbox.put(frames(1, 6))
        assert flushes.pop() == "request_flush"
        flush(outbox, server)
        await outbox.put(frames(7, 1))
        assert not flushes  # the lead is full: the next tick is soon enough
        outbox.pause()
        flushes.clear()
        await outbox.put(frames(8, 1))
        assert not flushes


class TestHousekeeping:
    async def test_once_a_second_ttls_are_renewed_and_the_stream_is_trimmed(
        self, clock: SimpleNamespace
    ) -> None:
        outbox, server = box(lead_ms=400, last=0), Server(0)
        await outbox.put(frames(1, 5))
        (first,) = flush(outbox, server)
        assert (first.ttl_ms, first.keep_entries) == (None, None)
        clock.now += 1.0
        (second,) = flush(outbox, server)
        assert second.entries == []
        assert second.ttl_ms == 120_000
        assert second.keep_entries == entries_to_keep(60 * 50)
        assert second.record["frames"] == 5
        assert flush(outbox, server) == []

    async def test_a_paused_turn_keeps_its_keys(self, clock: SimpleNamespace) -> None:
        outbox, server = box(last=0), Server(0)
        outbox.pause()
        flush(outbox, server)
        clock.now += 1.0
        assert [call.ttl_ms for call in flush(outbox, server)] == [120_000]

    async def test_frames_made_faster_than_real_time_are_kept_up_to_a_limit(
        self, clock: SimpleNamespace
    ) -> None:
        outbox, server = box(last=0), Server(0)
        for second in range(70):
            for _ in range(10):
                await outbox.put(frames(server.last + 1, 100))
                flush(outbox, server)
            clock.now += 1.0
            (call,) = flush(outbox, server)
            within = 1000 * (second + 1)
            most = int((RETENTION.audio_window_s + FASTER_KEPT_S) * 50)
            assert int(call.keep_entries) == entries_to_keep(min(max(3000, within), most))

    async def test_first_audio_is_counted_from_the_request(self, clock: SimpleNamespace) -> None:
        outbox, server = box(), Server()
        outbox.start(START)
        (start,) = flush(outbox, server)
        assert outbox.first_audio_ms is None
        assert "first_audio_ms" not in start.record
        assert start.record["voice"] == "tone-a"
        await outbox.put(frames(1, 1))
        (call,) = flush(outbox, server)
        assert outbox.first_audio_ms is not None
        assert call.record["first_audio_ms"] == int(outbox.first_audio_ms)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "put",
                "put",
                "flush",
                "flush",
                "lose-request",
                "lose-reply",
                "refuse",
                "forget",
                "pause",
                "resume",
            ]
        ),
        st.integers(1, 12),
    ),
    max_size=60,
)


@given(STEPS, st.sampled_from([0, 20, 100, 400]), st.sampled_from(["close", "end_now"]))
async def test_whatever_gets_lost_the_stream_has_every_entry_once(
    steps: list[tuple[str, int]], lead_ms: int, how: str
) -> None:
    outbox, server = box(lead_ms), Server()
    outbox.start(START)
    made = tick = 0
    seen, paused = 0, False  # the start may be sent while paused
    for step, count in steps:
        tick += 1
        match step:  # a put that has to wait would wait for ever here
            case "put" if outbox._unsent < (lead_ms // 20 or FREE_RUN_FRAMES):
                await outbox.put(frames(made + 1, count))
                made += count
            case "flush":
                for later in range(count):
                    flush(outbox, server, tick + later)
                tick += count
            case "lose-request":
                outbox.collect(tick)
                outbox.unanswered()
            case "refuse":
                outbox.collect(tick)
                outbox.refused()
            case "lose-reply":
                server.run(outbox.collect(tick))
                outbox.unanswered()
            case "forget":
                server.forget(min(count, len(server.stream)))
            case "pause":
                outbox.pause()
                paused = True
            case "resume":
                outbox.resume()
                paused = False
            case _:
                pass
        assert sorted(server.stream) == list(range(len(server.stream)))
        assert not (paused and server.last > seen)
        seen = max(seen, server.last)
    outbox.resume()
    if how == "close":
        outbox.close("completed")
    else:
        outbox.end_now("stopped")
    expected = made if how == "close" else outbox.frames
    for _ in range(2 * made + 10):
        tick += 1
        flush(outbox, server, tick)
    with anyio.fail_after(30):
        assert await outbox.settled() is PublishOutcome.ENDED
    if server.stream:
        assert sorted(server.stream) == list(range(expected + 1))
        assert all(server.stream[n] == ("pcm", b"frame %d" % n) for n in range(1, expected + 1))
    assert server.ended == max(expected + 1, 1)
