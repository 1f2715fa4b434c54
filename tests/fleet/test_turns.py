"""Turns from XADD to end entry, with a real server and a real worker."""

import time

import pytest

from tests.harness.fleet import Orchestrator, serving
from voicefleet.schemas.audio import Frame
from voicefleet.worker.engines.tone.family import ToneConfig

pytestmark = pytest.mark.anyio

SLOW = ToneConfig(rtf=0.2, chunk_ms=40)
TEXT = "One two three four five six. Seven eight nine ten eleven twelve."


@pytest.mark.matrix
async def test_a_request_is_spoken_and_settled(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix):
        entry = await fleet.add("s1", "Hello from the fleet.")
        heard = await fleet.hear("s1")
        assert heard.start is not None
        assert heard.start.request == entry
        assert (heard.start.model, heard.start.worker) == ("tone-test", "w1")
        assert heard.end.reason == "completed"
        assert heard.frames[0].text == "Hello from the fleet."
        assert heard.samples.any()
        await fleet.settled()
        state = await fleet.state("s1")
        assert state["state"] == "idle"
        assert state["frames"] == str(heard.end.frames)
        assert int(state["first_audio_ms"]) < 5000
        pending = await fleet.redis.xpending(fleet.keys.requests("tone-test"), "workers")
        assert pending["pending"] == 0


async def test_requests_sent_before_the_first_worker_are_spoken(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    await fleet.add("early", "I was here first.")
    async with serving(redis_url, prefix):
        assert (await fleet.hear("early")).end.reason == "completed"


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 48000])
async def test_every_sample_rate(
    fleet: Orchestrator, redis_url: str, prefix: str, rate: int
) -> None:
    async with serving(redis_url, prefix):
        await fleet.add("s", TEXT, sample_rate=rate, lead_ms=0)
        heard = await fleet.hear("s")
        assert heard.start is not None
        assert heard.start.sample_rate == rate
        assert len(heard.samples) == heard.end.frames * rate // 50


async def test_same_seed_same_samples_and_another_seed_others(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix):
        for session, seed in (("a", 7), ("b", 7), ("c", 8)):
            await fleet.add(session, TEXT, seed=seed, lead_ms=0)
        a, b, c = [await fleet.hear(session) for session in "abc"]
        assert a.pcm == b.pcm
        assert a.pcm != c.pcm


async def test_speed_changes_the_length(fleet: Orchestrator, redis_url: str, prefix: str) -> None:
    async with serving(redis_url, prefix):
        for session, speed in (("slow", 0.5), ("fast", 2.0)):
            await fleet.add(session, TEXT, speed=speed, lead_ms=0)
        slow, fast = await fleet.hear("slow"), await fleet.hear("fast")
        assert slow.end.frames > 2 * fast.end.frames


async def test_frames_are_paced_to_real_time_within_the_lead(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix):
        await fleet.add("s", TEXT, lead_ms=200)
        heard = await fleet.hear("s")
        first = heard.arrivals[1]
        for arrival, entry in zip(heard.arrivals, heard.entries, strict=True):
            if isinstance(entry, Frame):
                ahead = (entry.id.n) * 0.020 - (arrival - first)
                assert ahead <= 0.200 + 0.021, f"frame {entry.id.n} came {ahead:.3f} s ahead"


async def test_lead_zero_is_as_fast_as_frames_are_made(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix):
        begun = time.monotonic()
        await fleet.add("s", TEXT * 5, lead_ms=0)
        heard = await fleet.hear("s")
        assert heard.end.frames * 0.020 > time.monotonic() - begun, "faster than real time"


async def test_a_duplicate_is_spoken_once(fleet: Orchestrator, redis_url: str, prefix: str) -> None:
    async with serving(redis_url, prefix):
        for _ in range(3):
            await fleet.add("s", TEXT, request="r1", lead_ms=0)
        await fleet.add("s", "And the next.", request="r2", lead_ms=0)
        first, second = await fleet.turns("s", 2)
        assert [first.end.request, second.end.request] == ["r1", "r2"]
        await fleet.add("s", TEXT, request="r1", lead_ms=0)
        await fleet.settled()
        assert await fleet.redis.xlen(fleet.keys.audio("s")) == len(first.entries + second.entries)


@pytest.mark.matrix
async def test_a_session_speaks_in_order_across_workers(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix, name="w1"), serving(redis_url, prefix, name="w2"):
        for round_ in range(5):
            pipe = fleet.redis.pipeline(transaction=False)
            for index in range(8):
                pipe.xadd(
                    fleet.keys.requests("tone-test"),
                    {"session": f"s{round_}", "request": f"r{index}", "text": "Go.", "lead_ms": 0},
                )
            await pipe.execute()
        for round_ in range(5):
            turns = await fleet.turns(f"s{round_}", 8)
            assert [turn.end.request for turn in turns] == [f"r{i}" for i in range(8)]
            assert {turn.end.reason for turn in turns} == {"completed"}
        await fleet.settled()


async def test_sessions_do_not_wait_for_each_other_and_waiting_holds_no_slot(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix, slots=2):
        for _ in range(4):
            await fleet.add("long", TEXT, lead_ms=100)
        await fleet.hear("long", until=1)
        await fleet.add("other", "Short.", lead_ms=0)
        other = await fleet.hear("other")
        assert other.end.reason == "completed"
        assert (await fleet.state("long"))["turn"] == "1"
        await fleet.control("long", "stop")
        assert [turn.end.reason for turn in await fleet.turns("long", 4)] == ["stopped"] * 4


async def test_an_expired_request_is_answered_unspoken(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix):
        now_ms = int(time.time() * 1000)
        await fleet.add("late", TEXT, deadline_ms=now_ms - 1000)
        heard = await fleet.hear("late")
        assert heard.end.reason == "expired"
        assert heard.start is None
        await fleet.add("timely", "Go.", deadline_ms=now_ms + 60_000, lead_ms=0)
        assert (await fleet.hear("timely")).end.reason == "completed"


@pytest.mark.matrix
async def test_interrupt_drops_what_is_spoken_and_what_waits(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix, name="w1"), serving(redis_url, prefix, name="w2"):
        await fleet.add("s", TEXT, request="speaking")
        await fleet.hear("s", until=5)
        await fleet.add("s", TEXT, request="waiting")
        await fleet.add("s", "Listen!", request="urgent", interrupt=1, lead_ms=0)
        await fleet.add("s", "After.", request="after", lead_ms=0)
        turns = await fleet.turns("s", 4)
        assert [(t.end.request, t.end.reason) for t in turns] == [
            ("speaking", "interrupted"),
            ("waiting", "interrupted"),
            ("urgent", "completed"),
            ("after", "completed"),
        ]


async def test_too_many_waiting_turns_are_rejected_in_their_order(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix, max_waiting_turns=2):
        await fleet.add("s", TEXT, request="r0")
        await fleet.hear("s", until=1)
        for index in range(1, 5):
            await fleet.add("s", "Go.", request=f"r{index}", lead_ms=0)
        turns = await fleet.turns("s", 5)
        assert [turn.end.reason for turn in turns] == ["completed"] * 3 + ["rejected"] * 2
        assert "max_waiting_turns" in (turns[-1].end.error or "")
        assert [turn.end.request for turn in turns] == [f"r{i}" for i in range(5)]


class TestStreamedText:
    @pytest.mark.matrix
    async def test_is_spoken_while_it_is_written(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix):
            await fleet.add("s", request="r", stream=1, lead_ms=0)
            await fleet.write("s", "r", text="The first sentence is here. And the ")
            heard = await fleet.hear("s", until=10)
            assert heard.frames[0].text == "The first sentence is here."
            await fleet.write("s", "r", text="second one.", end=1)
            heard = await fleet.hear("s")
            assert heard.end.reason == "completed"
            spoken = [frame.text for frame in heard.frames if frame.text]
            assert " ".join(spoken) == "The first sentence is here. And the second one."
            await fleet.settled()
            assert await fleet.redis.xlen(fleet.keys.text("s", "r")) == 0

    async def test_equals_the_same_text_at_once(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix):
            await fleet.add("whole", TEXT, seed=1, lead_ms=0)
            await fleet.add("pieces", request="r", stream=1, seed=1, lead_ms=0)
            for at in range(0, len(TEXT), 7):
                await fleet.write("pieces", "r", text=TEXT[at : at + 7])
            await fleet.write("pieces", "r", end=1)
            assert (await fleet.hear("pieces")).pcm == (await fleet.hear("whole")).pcm

    async def test_flush_speaks_without_waiting(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix):
            await fleet.add("s", request="r", stream=1, lead_ms=0)
            await fleet.write("s", "r", text="no full stop yet", flush=1)
            heard = await fleet.hear("s", until=3)
            assert heard.frames[0].text == "no full stop yet"
            await fleet.write("s", "r", end=1)
            assert (await fleet.hear("s")).end.reason == "completed"

    async def test_that_stops_arriving_fails_the_turn(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix, text_timeout_s=0.3):
            await fleet.add("s", request="r", stream=1, lead_ms=0)
            await fleet.write("s", "r", text="One sentence. Half of ano")
            heard = await fleet.hear("s")
            assert (heard.end.reason, heard.end.error) == ("failed", "text_timeout")
            assert heard.frames

    async def test_written_before_its_request_is_not_lost(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix):
            await fleet.write("s", "r", text="Early bird.", end=1)
            await fleet.add("s", request="r", stream=1, lead_ms=0)
            heard = await fleet.hear("s")
            assert heard.frames[0].text == "Early bird."


async def test_a_session_of_many_short_turns_does_not_grow(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix, audio_window_s=0.5, resend_window_s=0.5):
        for turn in range(1, 13):
            await fleet.add("s", "Quite short.", lead_ms=0)
            await fleet.hear("s", turn)
        turns_of_40_frames = await fleet.redis.xlen(fleet.keys.audio("s"))
        assert 25 <= turns_of_40_frames < 200


async def test_the_window_is_trimmed_while_a_session_lives(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    async with serving(redis_url, prefix, audio_window_s=1.0):
        await fleet.add("s", TEXT * 4, lead_ms=500)
        heard = await fleet.hear("s")
        assert heard.end.frames > 700
        kept = await fleet.redis.xlen(fleet.keys.audio("s"))
        assert 50 <= kept < heard.end.frames
