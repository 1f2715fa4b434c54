"""An engine in a process of its own: real children, and all that can happen to them."""

import gc
import io
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness import ROOT, hosted_core
from tests.harness.hosted_core import BLOCK, expected
from voicefleet.worker import logs
from voicefleet.worker.config.sections import LoggingConfig
from voicefleet.worker.engines import registry
from voicefleet.worker.engines.cosyvoice2.family import CosyVoice2Config
from voicefleet.worker.engines.hosting.cores import config_of, factory_of
from voicefleet.worker.engines.hosting.engine import HostedEngine
from voicefleet.worker.engines.hosting.in_process import InProcessEngine
from voicefleet.worker.engines.hosting.messages import (
    Audio,
    Cancel,
    Changed,
    Command,
    Consumed,
    End,
    Failed,
    Logged,
    Open,
    Push,
    Report,
    Stop,
    Unpacker,
    pack,
)
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
from voicefleet.worker.engines.registry import EngineConfig
from voicefleet.worker.voicepacks import voicepack

pytestmark = pytest.mark.anyio

PACK = voicepack.read(ROOT / "voicepacks" / "tone" / "test")
SPEC = TurnSpec(voice="tone-a", seed=7)
HANG_S = 30.0
TEXT = "A sentence of some length, to be spoken in many blocks."


def make(core: str = hosted_core.NAME, **config: Any) -> HostedEngine:
    timeouts = {
        name: config.pop(name)
        for name in ("synthesis_timeout_s", "load_timeout_s")
        if name in config
    }
    return HostedEngine(PACK, core, config, **timeouts)


@asynccontextmanager
async def hosted(**config: Any) -> AsyncGenerator[HostedEngine]:
    engine = make(**config)
    with anyio.fail_after(HANG_S):
        await engine.load()
    try:
        with anyio.fail_after(HANG_S):
            yield engine
    finally:
        with anyio.CancelScope(shield=True):
            await engine.unload()


async def segments(*texts: str) -> AsyncIterator[Segment]:
    for index, text in enumerate(texts):
        yield Segment(index, text, 0, len(text))


async def speak(engine: HostedEngine, *texts: str, spec: TurnSpec = SPEC) -> list[Chunk]:
    async with aclosing(engine.speak(spec, segments(*texts))) as chunks:
        return [chunk async for chunk in chunks]


def joined(chunks: list[Chunk]) -> np.ndarray:
    return np.concatenate([chunk.samples for chunk in chunks])


def alive(pid: int) -> bool:
    """Whether there is such a process; a zombie is none that was reaped."""
    return Path(f"/proc/{pid}").exists()


def turns_alive(engine: HostedEngine) -> int:
    """How many turns the core holds, as it last said."""
    assert engine.info.memory is not None
    return int(engine.info.memory.per_voice_mb)


async def until(condition: Any) -> None:
    with anyio.fail_after(HANG_S):
        while not condition():
            await anyio.sleep(0.01)


async def test_what_the_core_says_arrives_as_it_was_said() -> None:
    async with hosted() as engine:
        chunks = await speak(engine, TEXT, "And more.")
        assert np.array_equal(
            joined(chunks), np.concatenate([expected(TEXT, 7), expected("And more.", 7, 1)])
        )
        marks = [mark for chunk in chunks for mark in chunk.marks]
        assert [(mark.offset, mark.segment) for mark in marks] == [
            (0, Segment(0, TEXT, 0, len(TEXT))),
            (0, Segment(1, "And more.", 0, 9)),
        ]
        assert all(chunk.samples.dtype == np.float32 for chunk in chunks)
        assert engine.info.voices == ("tone-a", "tone-b")
        assert engine.pid != os.getpid()


async def test_warm_up_reports_its_phases() -> None:
    async with hosted() as engine:
        assert engine.timings == {"load": 1.0}
        await engine.warm_up("Hm.")
        assert engine.timings == {"load": 1.0, "warm_up": 3.0}


async def test_audio_comes_before_the_text_is_complete() -> None:
    async with hosted() as engine:
        heard = anyio.Event()

        async def slowly() -> AsyncIterator[Segment]:
            yield Segment(0, TEXT, 0, len(TEXT))
            await heard.wait()
            yield Segment(1, "Then.", 0, 5)

        samples: list[np.ndarray] = []
        async with aclosing(engine.speak(SPEC, slowly())) as chunks:
            async for chunk in chunks:
                samples.append(chunk.samples)
                heard.set()
        assert np.array_equal(
            np.concatenate(samples), np.concatenate([expected(TEXT, 7), expected("Then.", 7, 1)])
        )


async def test_64_turns_side_by_side_are_each_what_they_are_alone() -> None:
    async with hosted() as engine:
        spoken: dict[int, np.ndarray] = {}

        async def one(seed: int) -> None:
            spec = TurnSpec(voice="tone-a", seed=seed)
            spoken[seed] = joined(await speak(engine, TEXT, "Two.", spec=spec))

        async with anyio.create_task_group() as tasks:
            for seed in range(64):
                tasks.start_soon(one, seed)
        for seed, samples in spoken.items():
            alone = np.concatenate([expected(TEXT, seed), expected("Two.", seed, 1)])
            assert np.array_equal(samples, alone)
        assert len(spoken) == 64
        await until(lambda: turns_alive(engine) == 0)


async def test_a_slow_consumer_bounds_what_is_made() -> None:
    ahead = 10 * BLOCK
    async with hosted(max_ahead=ahead) as engine:
        async with aclosing(engine.speak(SPEC, segments(TEXT))) as slow:
            first = await anext(slow)
            # Meanwhile another turn is spoken to its end: the core has had its time.
            for _ in range(3):
                await speak(engine, TEXT)
            turn = next(iter(engine._core._turns.values()))  # pyright: ignore[reportPrivateUsage]
            waiting = sum(len(audio.samples) // 4 for audio in turn._audio)
            assert waiting <= ahead
            rest = [chunk async for chunk in slow]
        assert np.array_equal(joined([first, *rest]), expected(TEXT, 7))


async def test_a_cancelled_turn_is_freed_at_once() -> None:
    async with hosted() as engine:
        # Longer than anything that is ahead of a listener: it does not end by itself.
        async with aclosing(engine.speak(SPEC, segments(TEXT * 10))) as chunks:
            await anext(chunks)
            assert turns_alive(engine) == 1
        await until(lambda: turns_alive(engine) == 0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(speak, engine, TEXT * 10)
            await until(lambda: turns_alive(engine) == 1)
            tasks.cancel_scope.cancel()
        await until(lambda: turns_alive(engine) == 0)
        assert np.array_equal(joined(await speak(engine, "Hm.")), expected("Hm.", 7))


async def test_a_turn_that_waits_for_its_text_can_be_cancelled() -> None:
    async def never() -> AsyncIterator[Segment]:
        await anyio.sleep_forever()
        yield Segment(0, "", 0, 0)

    async with hosted() as engine:
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                async for _ in engine.speak(SPEC, never()):
                    pytest.fail("spoke without a text")

            tasks.start_soon(wait)
            await until(lambda: turns_alive(engine) == 1)
            tasks.cancel_scope.cancel()
        await until(lambda: turns_alive(engine) == 0)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [("refuse", CannotSpeakError, "will not"), ("stumble", EngineError, "stumbled")],
)
async def test_a_turn_that_fails_is_alone(text: str, error: type[Exception], words: str) -> None:
    async with hosted() as engine:
        async with aclosing(engine.speak(SPEC, segments(TEXT))) as other:
            first = await anext(other)
            with pytest.raises(error, match=words) as caught:
                await speak(engine, "Well.", text)
            assert type(caught.value) is error
            rest = [chunk async for chunk in other]
        assert np.array_equal(joined([first, *rest]), expected(TEXT, 7))


async def test_a_turn_that_cannot_be_opened_is_refused() -> None:
    async with hosted() as engine:
        with pytest.raises(CannotSpeakError, match="takes no instructions"):
            await speak(engine, TEXT, spec=TurnSpec(voice="tone-a", seed=1, instruct="sing"))
        assert turns_alive(engine) == 0


async def test_a_text_that_fails_fails_its_turn() -> None:
    async def broken() -> AsyncIterator[Segment]:
        yield Segment(0, TEXT, 0, len(TEXT))
        raise RuntimeError("the text is gone")

    async with hosted() as engine:
        with pytest.raises(RuntimeError, match="the text is gone"):
            async for _ in engine.speak(SPEC, broken()):
                pass
        await until(lambda: turns_alive(engine) == 0)


async def test_what_no_encoding_holds_is_still_spoken() -> None:
    async with hosted() as engine:
        assert np.array_equal(joined(await speak(engine, "Half \ud83d here")),
                              expected("Half ? here", 7))  # fmt: skip


async def test_a_death_in_mid_turn_is_an_error_of_every_turn() -> None:
    async with hosted() as engine:
        errors: list[str] = []

        async def other() -> None:
            with pytest.raises(EngineError) as caught:
                async for _ in engine.speak(SPEC, segments(TEXT * 100)):
                    await anyio.sleep(0.001)
            errors.append(str(caught.value))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(other)
            await until(lambda: turns_alive(engine) == 3)
            with pytest.raises(EngineError, match="its process ended"):
                await speak(engine, f"crash {TEXT}")
        assert errors == ["tone-test: its process ended"] * 3
        assert await engine.lost() == "its process ended (SIGKILL)"
        with pytest.raises(EngineError, match="its process ended"):
            await speak(engine, TEXT)
        pid = engine.pid
        await engine.unload()
        assert not alive(pid)
        await engine.load()
        assert np.array_equal(joined(await speak(engine, TEXT)), expected(TEXT, 7))


async def test_a_hung_step_takes_the_engine_down() -> None:
    async with hosted(synthesis_timeout_s=1.0) as engine:
        pid = engine.pid
        with pytest.raises(EngineError, match="no sign of life for 1 s"):
            await speak(engine, f"hang {TEXT}")
        assert await engine.lost() == "no sign of life for 1 s"
        await engine.unload()
        assert not alive(pid)


async def test_a_stopped_process_counts_as_hung() -> None:
    async with hosted(synthesis_timeout_s=1.0) as engine:
        os.kill(engine.pid, signal.SIGSTOP)
        assert await engine.lost() == "no sign of life for 1 s"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_what_the_child_started_ends_with_it(number: signal.Signals) -> None:
    async with hosted(helper=True, synthesis_timeout_s=1.0) as engine:
        helper = int(engine.timings["helper"])
        assert running(helper)
        os.kill(engine.pid, number)
        await engine.lost()
        await engine.unload()
        await until(lambda: not running(helper))


async def test_an_idle_engine_is_alive() -> None:
    async with hosted(synthesis_timeout_s=1.0) as engine:
        with anyio.move_on_after(2.5):
            pytest.fail(await engine.lost())
        assert np.array_equal(joined(await speak(engine, TEXT)), expected(TEXT, 7))


async def test_a_worker_that_stood_still_blames_nobody() -> None:
    async with hosted(synthesis_timeout_s=1.0) as engine:
        subprocess.run(["sleep", "2.5"], check=True)  # noqa: ASYNC221  (the loop stands still)
        with anyio.move_on_after(0.5):
            pytest.fail(await engine.lost())


async def test_a_broken_loop_says_what_broke() -> None:
    async with hosted() as engine:
        with pytest.raises(EngineError, match="tone-test: ValueError: poisoned"):
            await speak(engine, "poison")
        assert await engine.lost() == "ValueError: poisoned"


async def test_nonsense_on_the_socket_ends_the_engine() -> None:
    async with hosted() as engine:
        with pytest.raises(EngineError, match="spoke nonsense"):
            await speak(engine, f"babble {TEXT}")
        assert "a message of 4294967295 bytes" in await engine.lost()


@pytest.mark.parametrize("nonsense", [b"", b"\xff" * 64, b"\x03\0\0\0\x93\xa1x", b"\x01\0\0\0\xc1"])
async def test_a_child_that_is_told_nonsense_exits(nonsense: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = subprocess.Popen(  # noqa: ASYNC220
            [
                *(sys.executable, "-m", "voicefleet.worker.engines.hosting.child"),
                *(str(theirs.fileno()), str(os.getpid())),
            ],
            pass_fds=[theirs.fileno()],
            cwd=ROOT,
        )
        theirs.close()
        ours.sendall(nonsense)
        if not nonsense:
            ours.shutdown(socket.SHUT_WR)
        assert await anyio.to_thread.run_sync(child.wait, HANG_S) == 3


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"load": "fail"}, "tone-test: no hands"),
        ({"load": "break"}, "tone-test: ValueError: odd hands"),
        ({"load": "die"}, r"tone-test: its process ended \(SIGKILL\)"),
        ({"load": "hang", "load_timeout_s": 0.8}, r"tone-test: its load took more than 0\.8 s"),
        ({"core": "violin"}, "no engine is called 'violin'; there are cosyvoice2"),
        ({"core": "no.such:build"}, r"no.such:build cannot be imported \(No module named 'no'"),
    ],
)
async def test_a_load_that_fails_says_why_and_leaves_nothing(
    config: dict[str, Any], words: str
) -> None:
    engine = make(**config)
    before = children()
    with anyio.fail_after(HANG_S):
        with pytest.raises(EngineLoadError, match=words):
            await engine.load()
        assert children() == before
        await engine.unload()
        with pytest.raises(EngineError, match="not loaded"):
            _ = engine.info


async def test_a_process_that_cannot_be_started_is_a_failed_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(EngineLoadError, match="its process cannot be started"):
        await make().load()


async def test_a_warm_up_that_hangs_is_a_failed_load() -> None:
    async with hosted(warm="hang", load_timeout_s=1.5, synthesis_timeout_s=1.0) as engine:
        with pytest.raises(EngineLoadError, match=r"its warm-up took more than 1\.5 s"):
            await engine.warm_up("Hm.")


async def test_a_load_can_be_cancelled() -> None:
    before = children()
    with anyio.fail_after(HANG_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(make(load="hang").load)
            await until(lambda: len(children()) > len(before))
            tasks.cancel_scope.cancel()
        assert children() == before


async def test_unloading_ends_the_turns_and_can_be_done_twice() -> None:
    async with hosted() as engine:
        async with aclosing(engine.speak(SPEC, segments(TEXT * 10))) as chunks:
            await anext(chunks)
            pid = engine.pid
            await engine.unload()
            assert not alive(pid)
            with pytest.raises(EngineError, match="unloaded"):
                async for _ in chunks:
                    pass
        await engine.unload()
        with pytest.raises(EngineError, match="not loaded"):
            await speak(engine, TEXT)


async def test_20_loads_and_unloads_leave_no_process_no_file_and_no_task() -> None:
    engine = make(ballast_mb=8)
    processes, files, tasks = children(), descriptors(), tasks_running()
    for cycle in range(20):
        with anyio.fail_after(HANG_S):
            await engine.load()
            assert np.array_equal(joined(await speak(engine, "Hm.")), expected("Hm.", 7))
            assert children() != processes
            await engine.unload()
        assert children() == processes, f"in cycle {cycle}"
    gc.collect()
    assert descriptors() == files
    assert tasks_running() == tasks


async def test_the_child_dies_with_its_worker() -> None:
    program = f"""
        import asyncio, time
        from tests.worker.engines.hosting.test_hosting import make, segments, SPEC

        async def main():
            engine = make()
            await engine.load()
            async for _ in engine.speak(SPEC, segments("hang and more")):
                print("pid", engine.pid, flush=True)
                await asyncio.sleep({HANG_S})

        asyncio.run(main())
    """
    worker = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    try:
        assert worker.stdout is not None
        line = b""
        while not line.startswith(b"pid "):
            line = await anyio.to_thread.run_sync(worker.stdout.readline)
            assert line, "it ended"
        pid = int(line.split()[1])
        assert alive(pid)
        worker.kill()
        worker.wait()
        await until(lambda: not running(pid))
    finally:
        worker.kill()
        worker.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_signals_to_the_worker_are_not_the_childs(number: signal.Signals) -> None:
    async with hosted() as engine:
        assert os.getpgid(engine.pid) != os.getpgid(0)
        os.kill(engine.pid, number)
        assert np.array_equal(joined(await speak(engine, TEXT)), expected(TEXT, 7))


async def test_log_lines_of_the_child_are_the_workers() -> None:
    stream = io.StringIO()
    logs.configure(LoggingConfig(format="json"), worker="w7", stream=stream)
    async with hosted() as engine:
        await speak(engine, TEXT)
    lines = [msgspec.json.decode(line) for line in stream.getvalue().splitlines()]
    (line,) = [line for line in lines if line["event"] == "opened"]
    assert (line["worker"], line["level"]) == ("w7", "info")
    assert "not to be logged" not in stream.getvalue()


async def test_in_this_process_a_core_speaks_the_same() -> None:
    engine = InProcessEngine(PACK, hosted_core.build, {})
    await engine.load()
    await engine.warm_up("Hm.")
    assert engine.timings == {"load": 1.0, "warm_up": 3.0}
    samples = [chunk.samples async for chunk in engine.speak(SPEC, segments(TEXT, "Two."))]
    spoken = np.concatenate(samples)
    assert np.array_equal(spoken, np.concatenate([expected(TEXT, 7), expected("Two.", 7, 1)]))
    with pytest.raises(CannotSpeakError, match="will not"):
        async for _ in engine.speak(SPEC, segments("refuse")):
            pass
    await engine.unload()
    with pytest.raises(EngineError, match="not loaded"):
        _ = engine.info


@given(st.lists(st.integers(1, 40), max_size=30), st.binary(max_size=60))
def test_messages_arrive_in_whatever_pieces(cuts: list[int], samples: bytes) -> None:
    segment = Segment(3, "Grüße.", 5, 11)
    commands = [Open(1, SPEC), Push(1, segment), Consumed(1, 2**40), End(1), Cancel(2), Stop()]
    heard = [
        Audio(1, samples, (Mark(0, segment),)),
        Failed(1, "retry", "no"),
        Changed(EngineInfo(native_rate=1, slots=2, voices=("a",), default_voice="a",
                           languages=())),
        Logged("info", "an_event", {"n": 1}),
    ]  # fmt: skip
    for kind, messages in ((Command, commands), (Report, heard)):
        stream, unpacker = b"".join(map(pack, messages)), Unpacker(kind)
        received: list[object] = []
        for size in [*cuts, len(stream)]:
            received += unpacker.feed(stream[:size])
            stream = stream[size:]
        assert received == messages


@pytest.mark.parametrize(
    ("implementation", "folder"), [("native", "cosyvoice2"), ("upstream", "cosyvoice2_upstream")]
)
def test_the_family_cosyvoice2_is_spoken_in_a_child(
    implementation: Any, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    voicepack = msgspec.structs.replace(PACK, family="cosyvoice2", model_id="cosyvoice2-x")
    section = CosyVoice2Config(implementation=implementation, slots=7)
    engine = registry.build(voicepack, EngineConfig(cosyvoice2=section))
    assert isinstance(engine, HostedEngine)
    start = engine._start  # pyright: ignore[reportPrivateUsage]
    assert start.core == "cosyvoice2"
    assert config_of(start.core, start.config) == section
    module = f"voicefleet.worker.engines.{folder}.core"
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(build=lambda *_: folder))
    assert factory_of(start.core)(voicepack, section, id) == folder
    assert registry.slots_of(voicepack, EngineConfig(cosyvoice2=section)) == 7
    assert registry.slots_of(voicepack, EngineConfig()) == 1, "the one that has it loaded"


async def test_slots_and_memory_may_change() -> None:
    async with hosted(ballast_mb=16) as engine:
        assert engine.info.slots == 64
        assert engine.info.memory is not None
        assert engine.info.memory.used_mb == 16
        await speak(engine, "fewer")
        assert engine.info.slots == 2


def children() -> set[int]:
    """Our child processes, zombies too."""
    task = Path(f"/proc/self/task/{os.getpid()}/children")
    return {int(pid) for pid in task.read_text().split()}


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir() if entry.exists()}


def tasks_running() -> int:
    return len(anyio.get_running_tasks())


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
