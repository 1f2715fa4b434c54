"""One turn: its states, its marks, and how it ends."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from itertools import product

import anyio
import numpy as np
import pytest

from voicefleet.worker.audio.chain import AudioChain, SegmentStart
from voicefleet.worker.audio.resume import ResumePoint
from voicefleet.worker.engines.protocol import (
    Chunk,
    EngineError,
    EngineInfo,
    Mark,
    Segment,
    SegmentLimits,
    TurnSpec,
)
from voicefleet.worker.synthesis.prepared_turn import PreparedTurn
from voicefleet.worker.synthesis.turn import (
    TRANSITIONS,
    InvalidTransitionError,
    Trail,
    Turn,
    TurnFrame,
    TurnState,
)
from voicefleet.worker.text.feed import TextFeed

pytestmark = pytest.mark.anyio

RATE = 8000
SPEC = TurnSpec(voice="a", seed=1)
IDLE, SYNTHESIZING, PAUSED, STOPPED = TurnState


class Sink:
    """Takes everything, and writes down what it is told."""

    def __init__(self) -> None:
        self.frames: list[TurnFrame] = []
        self.told: list[str] = []
        self.gate: anyio.Event | None = None

    async def put(self, frames: Sequence[TurnFrame]) -> None:
        if self.gate is not None:
            await self.gate.wait()
        self.frames += frames

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")


class Hummer:
    """Hums for 0.1 s a segment, ``chunks`` times, and then waits at the gate if there is one."""

    info = EngineInfo(
        native_rate=RATE, slots=1, voices=("a",), default_voice="a", languages=("en",)
    )

    def __init__(self, chunks: int = 1, gate: anyio.Event | None = None) -> None:
        self.chunks = chunks
        self.gate = gate
        self.waiting = anyio.Event()
        self.ended = False
        self.error: Exception | None = None

    async def load(self) -> None: ...

    async def warm_up(self, text: str) -> None: ...

    async def unload(self) -> None: ...

    async def speak(
        self, spec: TurnSpec, segments: AsyncIterator[Segment]
    ) -> AsyncGenerator[Chunk]:
        try:
            async for segment in segments:
                for index in range(self.chunks):
                    marks = () if index else (Mark(0, segment),)
                    yield Chunk(np.full(RATE // 10, 0.25, np.float32), marks)
                if self.error is not None:
                    raise self.error
                if self.gate is not None:
                    self.waiting.set()
                    await self.gate.wait()
        finally:
            self.ended = True


class Words(TextFeed):
    """Gives out the segments ``word 0``, ``word 1``, ..."""

    def __init__(self, count: int) -> None:
        super().__init__(SegmentLimits(), 1.0, 100)
        self._count = count

    async def segments(self, first: int = 0) -> AsyncGenerator[Segment]:
        for index in range(first, self._count):
            yield Segment(index, f"word {index}", 10 * index, 10 * index + 6)

    def text_of(self, segment: Segment) -> str:
        return segment.text


async def speak(turn: Turn, engine: Hummer, words: int = 2) -> bool:
    prepared = PreparedTurn(engine=engine, spec=SPEC, chain=AudioChain(RATE, RATE), first_segment=0)
    return await turn.run(prepared, Words(words))


def brought_to(state: TurnState) -> tuple[Turn, Sink]:
    sink = Sink()
    turn = Turn(sink)
    if state is not IDLE:
        turn.pause()
    if state is SYNTHESIZING:
        turn.resume()
    if state is STOPPED:
        turn.stop()
    assert turn.state is state
    sink.told.clear()
    return turn, sink


class TestStates:
    @pytest.mark.parametrize(
        ("state", "call", "then", "told"),
        [
            (IDLE, "pause", PAUSED, ["pause"]),
            (IDLE, "resume", IDLE, []),
            (IDLE, "stop", STOPPED, []),
            (SYNTHESIZING, "pause", PAUSED, ["pause"]),
            (SYNTHESIZING, "resume", SYNTHESIZING, []),
            (SYNTHESIZING, "stop", STOPPED, []),
            (SYNTHESIZING, "finished", IDLE, []),
            (PAUSED, "pause", PAUSED, []),
            (PAUSED, "resume", SYNTHESIZING, ["resume"]),
            (PAUSED, "stop", STOPPED, []),
            (PAUSED, "finished", IDLE, []),
            (STOPPED, "pause", STOPPED, []),
            (STOPPED, "resume", STOPPED, []),
            (STOPPED, "stop", STOPPED, []),
            (STOPPED, "finished", STOPPED, []),
        ],
    )
    async def test_each_call_in_each_state(
        self, state: TurnState, call: str, then: TurnState, told: list[str]
    ) -> None:
        turn, sink = brought_to(state)
        getattr(turn, call)()
        assert turn.state is then
        assert sink.told == told
        assert turn.is_stopped is (then is STOPPED)

    @pytest.mark.parametrize(("here", "there"), list(product(TurnState, TurnState)))
    async def test_only_the_transitions_of_the_table_are_made(
        self, here: TurnState, there: TurnState
    ) -> None:
        turn, _ = brought_to(here)
        go = turn._go  # pyright: ignore[reportPrivateUsage]
        if there in TRANSITIONS[here]:
            go(there)
            assert turn.state is there
        else:
            with pytest.raises(InvalidTransitionError, match=f"{here.value} .* {there.value}"):
                go(there)
            assert turn.state is here

    async def test_a_turn_that_runs_is_synthesizing_and_then_idle(self) -> None:
        turn, _ = brought_to(IDLE)
        engine = Hummer(gate=anyio.Event())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(speak, turn, engine)
            await engine.waiting.wait()
            assert turn.state is SYNTHESIZING
            assert engine.gate is not None
            engine.gate.set()
        assert turn.state is SYNTHESIZING  # its frames have yet to leave
        turn.finished()
        assert turn.state is IDLE

    async def test_a_pause_before_the_start_holds(self) -> None:
        turn, sink = brought_to(PAUSED)
        assert await speak(turn, Hummer())
        assert turn.state is PAUSED
        assert sink.frames  # made, for the sink to hold back
        turn.resume()
        assert sink.told == ["resume"]


class TestStop:
    async def test_ends_the_engines_work_at_once(self) -> None:
        turn, _ = brought_to(IDLE)
        engine = Hummer(gate=anyio.Event())
        spoken: list[bool] = []
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:

                async def run() -> None:
                    spoken.append(await speak(turn, engine))

                tasks.start_soon(run)
                await engine.waiting.wait()
                assert not engine.ended
                turn.stop()
        assert engine.ended
        assert spoken == [False]

    async def test_ends_a_turn_whose_sink_is_full(self) -> None:
        turn, sink = brought_to(IDLE)
        sink.gate = anyio.Event()
        engine = Hummer(chunks=3)
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(speak, turn, engine)
                await anyio.wait_all_tasks_blocked()
                turn.stop()
        assert engine.ended
        assert not sink.frames

    async def test_before_the_start_speaks_nothing(self) -> None:
        turn, sink = brought_to(STOPPED)
        assert await speak(turn, Hummer(chunks=100)) is False
        assert not sink.frames

    async def test_from_within_the_sink(self) -> None:
        turn, sink = brought_to(IDLE)

        async def put(frames: Sequence[TurnFrame]) -> None:
            sink.frames += frames
            turn.stop()

        sink.put = put
        engine = Hummer(chunks=100)
        assert await speak(turn, engine, 3) is False
        assert engine.ended
        assert len(sink.frames) <= 5


async def test_an_error_of_the_engine_comes_as_itself() -> None:
    turn, sink = brought_to(IDLE)
    engine = Hummer()
    engine.error = EngineError("out of breath")
    with pytest.raises(EngineError) as caught:
        await speak(turn, engine)
    assert caught.value is engine.error
    assert engine.ended
    assert sink.frames


async def test_cancellation_from_outside_is_no_stop() -> None:
    turn, _ = brought_to(IDLE)
    engine = Hummer(gate=anyio.Event())
    with anyio.move_on_after(0.01) as scope:
        await speak(turn, engine)
        raise AssertionError("unreachable")
    assert scope.cancelled_caught
    assert engine.ended
    assert not turn.is_stopped


class TestFrames:
    async def test_are_numbered_and_complete(self) -> None:
        turn, sink = brought_to(IDLE)
        assert await speak(turn, Hummer(chunks=3))
        assert [frame.n for frame in sink.frames] == list(range(1, 31))
        assert {len(frame.pcm) for frame in sink.frames} == {2 * RATE // 50}
        assert turn.audio_s == pytest.approx(0.6)
        assert turn.engine_s > 0

    async def test_carry_the_text_where_its_speech_begins(self) -> None:
        turn, sink = brought_to(IDLE)
        await speak(turn, Hummer(), 3)
        texts = {frame.n: frame.text for frame in sink.frames if frame.text is not None}
        assert texts == {1: "word 0", 6: "word 1", 11: "word 2"}

    async def test_carry_the_latest_resume_points(self) -> None:
        turn, sink = brought_to(IDLE)
        await speak(turn, Hummer(), 6)
        marked = [frame for frame in sink.frames if frame.resume is not None]
        assert [frame.n for frame in marked] == [1 + 5 * index for index in range(6)]
        assert marked[-1].resume is not None
        points = Trail.decode(marked[-1].resume)
        assert points == [ResumePoint(i, 10 * i, i * RATE // 10) for i in range(2, 6)]

    async def test_continue_the_trail_of_an_earlier_owner(self) -> None:
        turn, sink = brought_to(IDLE)
        earlier = [ResumePoint(0, 0, 0), ResumePoint(1, 10, RATE // 10)]
        start = earlier[1]
        prepared = PreparedTurn(
            engine=Hummer(),
            spec=SPEC,
            chain=AudioChain(RATE, RATE, start=start, first_frame=8),
            first_segment=1,
            points=earlier,
        )
        await turn.run(prepared, Words(3))
        assert [frame.n for frame in sink.frames] == list(range(8, 16))
        marked = [frame for frame in sink.frames if frame.resume]
        assert [frame.n for frame in marked] == [11]
        assert marked[0].resume is not None
        assert Trail.decode(marked[0].resume) == [*earlier, ResumePoint(2, 20, 2 * RATE // 10)]


class TestTrail:
    @staticmethod
    def begins(*indices: int) -> list[SegmentStart]:
        return [SegmentStart(Segment(i, "x", 5 * i, 5 * i + 1), 100 * i) for i in indices]

    def test_keeps_the_latest(self) -> None:
        trail = Trail()
        for index in range(10):
            raw = trail.note(self.begins(index))
        assert [p.segment for p in Trail.decode(raw)] == [6, 7, 8, 9]

    def test_a_segment_is_noted_once(self) -> None:
        trail = Trail([ResumePoint(3, 15, 300)])
        assert [p.segment for p in Trail.decode(trail.note(self.begins(3, 4)))] == [3, 4]

    def test_nothing_is_decoded_from_nothing(self) -> None:
        assert Trail.decode(b"") == []
        for debris in (
            b"{",
            b"\xff",
            b"[1]",
            b'[{"segment":-1,"char":0,"native":0}]',
            b"[" * 100_000,
        ):
            assert Trail.decode(debris) == []
