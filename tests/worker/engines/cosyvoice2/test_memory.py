"""Memory: what it is said to be, what happens where it ends, and that closing gives it back."""

import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the cosyvoice extra (torch)")

from tests.harness import ROOT
from tests.worker.engines.cosyvoice2.driving import SENTENCES, Driver, segments
from voicefleet.worker.engines.cosyvoice2.budget import BLOCKS_PER_SLOT
from voicefleet.worker.engines.cosyvoice2.out_of_memory import is_out_of_memory
from voicefleet.worker.engines.hosting.messages import Failed

MIB = 2**20

ALLOCATOR = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    # What is freed goes back at once, so that the limit counts what is in use.
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and limits RLIMIT_DATA")


@torch.inference_mode()
def test_the_figures_are_those_of_the_tensors(tiny_pack: Path) -> None:
    driver = Driver(tiny_pack, slots=3)
    loaded: Any = driver.core._runner
    memory, shares = loaded.info.memory, loaded.budget
    cache = loaded.decoder.cache
    # One more position than is offered takes what pads a prompt.
    slot = (cache.keys.nbytes + cache.values.nbytes) / shares.slots
    assert shares.slot_bytes == pytest.approx(slot, rel=1e-3)
    flow = loaded.audio._renderer._cache
    pages = [flow.tokens, flow.frames]
    page = sum(pool.nbytes // pool.shape[1] for pool in pages)
    page += flow.steps.nbytes // flow.tokens.shape[1]
    states = [flow.left_tokens, flow.left_constants, flow.left_inputs]
    state = sum(pool.nbytes // pool.shape[1] for pool in states)
    state += flow.left_steps.nbytes // flow.left_steps.shape[2]
    assert shares.page_bytes == page + state
    assert flow.tokens.shape[1] == shares.pages + 1
    assert memory.per_session_mb == pytest.approx(
        (shares.slot_bytes + BLOCKS_PER_SLOT * shares.page_bytes) / MIB, abs=0.1
    )
    free = loaded.audio._renderer.free_pages
    loaded.speakers.acquire("random")
    taken = free - loaded.audio._renderer.free_pages
    assert taken >= 1
    assert memory.per_voice_mb == pytest.approx(taken * shares.page_bytes / MIB, abs=0.1)
    assert 0 < memory.used_mb < memory.total_mb


def test_an_utterance_takes_the_pages_that_it_is_said_to_take(tiny_pack: Path) -> None:
    driver = Driver(tiny_pack, slots=1)
    renderer: Any = driver.core._runner.audio._renderer
    driver.speak(1, SENTENCES[0])
    before, least = renderer.free_pages, renderer.free_pages
    driver.open(2, [])
    driver.core.cancel(2)
    assert renderer.free_pages == before
    driver.open(3, segments(*SENTENCES))
    while 3 not in driver.ended:
        driver.core.consumed(3, sum(map(len, driver.audio.get(3, []))))
        driver.core.step()
        least = min(least, renderer.free_pages)
    assert renderer.free_pages == before
    assert 0 < before - least <= BLOCKS_PER_SLOT


CAPPED = """
import hashlib, json, re, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.worker.engines.cosyvoice2.driving import SENTENCES, Driver, segments
from voicefleet.worker.engines.cosyvoice2 import devices
from voicefleet.worker.engines.cosyvoice2.lm import decoding
from voicefleet.worker.engines.hosting.messages import Changed, Failed

def digest(turn):
    return hashlib.sha256(driver.heard(turn).tobytes()).hexdigest()

# One who reads a long text in large pieces needs more memory than anybody else.
decoding.CONTINUATION_BUCKET = decoding.PROMPT_BUCKETS[-1]
driver = Driver(Path(sys.argv[1]), slots=3)
driver.speak(1, *SENTENCES)
found = {"alone": digest(1), "slots": driver.core.info.slots}
data_kb = int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
limit = data_kb // 1024 + 18
devices.limit_memory(torch.device("cpu"), limit)
driver.open(2, segments(*SENTENCES))
for _ in range(12):
    driver.core.step()
driver.events.clear()
driver.open(3, segments(SENTENCES[0]), mode="instruct", instruct="softly " * 300)
driver.run(2, 3)
failed = [event for event in driver.events if isinstance(event, Failed)]
changed = [event for event in driver.events if isinstance(event, Changed)]
driver.speak(4, *SENTENCES)
found |= {
    "failed": [[event.turn, event.kind, event.message] for event in failed],
    "changed": [event.info.slots for event in changed],
    "beside": digest(2),
    "after": digest(4),
    "free": len(driver.core._free_slots),
}
print(json.dumps(found))
"""


@linux
def test_where_memory_ends_only_the_one_who_asked_fails(tiny_pack: Path) -> None:
    """In a process of its own, held to a little more than it has by a real limit."""
    ran = subprocess.run(
        [sys.executable, "-c", CAPPED, str(tiny_pack)],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=ROOT,
        env={**os.environ, **ALLOCATOR},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    ((turn, kind, message),) = found["failed"]
    assert (turn, kind) == (3, "retry")
    assert message.startswith("out of memory")
    assert "softly" not in message
    assert found["changed"] == [found["slots"] - 1]
    assert found["beside"] == found["alone"]
    assert found["after"] == found["alone"]
    assert found["free"] == 3


@pytest.mark.parametrize("stage", ["flow", "vocoder"])
def test_a_batch_that_breaks_off_leaves_no_gap(
    tiny_pack: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Between two rows, in mid-turn. Whoever is not failed hears all and the right samples."""
    turns = (1, 2, 3)
    driver = Driver(tiny_pack, slots=3, flow_batch=2)
    alone = {turn: driver.speak(turn, *SENTENCES, seed=turn) for turn in turns}
    driver = Driver(tiny_pack, slots=3, flow_batch=2)
    audio: Any = driver.core._runner.audio
    of = audio._renderer if stage == "flow" else audio._vocoder.vocoder
    name = "step" if stage == "flow" else "window"
    original, begin, rows, broken = getattr(of, name), audio.start, [-99], [0]

    def start(sequences: Any) -> None:
        rows[0] = 0 if len(sequences) == 2 and len(driver.audio) == 3 else -99
        begin(sequences)

    def row(*inputs: Any) -> Any:
        rows[0] += 1
        if rows[0] == 2 and not broken[0]:
            broken[0] = 1
            raise torch.OutOfMemoryError("no more")
        return original(*inputs)

    monkeypatch.setattr(audio, "start", start)
    monkeypatch.setattr(of, name, row)
    for turn in turns:
        driver.open(turn, segments(*SENTENCES), seed=turn)
    driver.run(*turns)
    assert broken[0]
    failed = {turn for turn in turns if isinstance(driver.ended[turn], Failed)}
    assert len(failed) == 2
    for turn in turns:
        heard = driver.heard(turn)
        assert np.array_equal(heard, alone[turn][: len(heard)])
        assert turn in failed or len(heard) == len(alone[turn])
    for turn in turns:
        again = driver.speak(10 + turn, *SENTENCES, seed=turn)
        assert np.array_equal(again, alone[turn])


def resident_mb() -> float:
    """Of this process, after what is free has been given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


CYCLES = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.worker.engines.cosyvoice2.driving import Driver
from tests.worker.engines.cosyvoice2.test_memory import resident_mb

def cycle():
    driver = Driver(Path(sys.argv[1]), slots=2, flow_cache_mb=64)
    driver.speak(1, "Well done.")
    driver.core.close()

sizes = []
for _ in range(20):
    cycle()
    sizes.append(resident_mb())
print(" ".join(map(str, sizes)))
"""


@linux
@pytest.mark.long
@pytest.mark.timeout(300)
def test_twenty_loads_leave_nothing(tiny_pack: Path) -> None:
    """The model alone is some 60 MB, its caches 100 MB more: kept twice, it would show."""
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CYCLES), str(tiny_pack)],
        capture_output=True,
        text=True,
        timeout=290,
        cwd=ROOT,
        env={**os.environ, **ALLOCATOR},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    sizes = [float(size) for size in ran.stdout.splitlines()[-1].split()]
    assert len(sizes) == 20
    # The first loads fill what libraries keep for good.
    assert sizes[-1] - sizes[4] < 15, sizes
    assert max(sizes[5:]) - min(sizes[5:]) < 30, sizes


# Which errors mean that memory ran out.


def raised(work: Any) -> BaseException:
    with pytest.raises(BaseException) as caught:
        work()
    return caught.value


accelerator_error: Any = getattr(torch, "AcceleratorError", RuntimeError)

ADVICE = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the "
    "stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
)

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
    MemoryError(),
    raised(lambda: torch.empty(1 << 60)),
    raised(lambda: np.empty(1 << 50)),
    RuntimeError("CUDA error: out of memory" + ADVICE),
    accelerator_error("CUDA error: out of memory" + ADVICE),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    RuntimeError("std::bad_alloc"),
]

FAULTS = [
    accelerator_error("CUDA error: an illegal memory access was encountered" + ADVICE),
    RuntimeError("CUDA error: an illegal memory access was encountered" + ADVICE),
    accelerator_error("CUDA error: device-side assert triggered" + ADVICE),
    accelerator_error("CUDA error: unspecified launch failure" + ADVICE),
    RuntimeError("CUDA error: operation not permitted when stream is capturing" + ADVICE),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    NotImplementedError("Could not run 'aten::x' with arguments from the 'CUDA' backend."),
    raised(lambda: torch.nn.Module()(1)),
    torch._dynamo.exc.TorchDynamoException("out of memory"),
    torch._dynamo.exc.Unsupported("CUDA error: out of memory"),
    RecursionError("maximum recursion depth exceeded"),
    ValueError("CUDA error: out of memory"),
    KeyboardInterrupt(),
]


def named(error: BaseException) -> str:
    return f"{type(error).__name__}-{str(error)[:60]}"


@pytest.fixture(scope="module")
def breakable(tiny_pack: Path) -> Driver:
    return Driver(tiny_pack, slots=2, flow_cache_mb=64)


def break_off(driver: Driver, error: BaseException) -> Any:
    """Speak a turn whose first block raises ``error``: how it ended."""

    def broken(*_: Any) -> None:
        raise error

    driver.core._runner.offered = 2
    driver.ended.clear()
    driver.open(1, segments("Well done."))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(driver.core._runner.audio, "start", broken)
            while 1 not in driver.ended:
                driver.core.step()
    finally:
        driver.core.cancel(1)
    return driver.ended[1]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=named)
def test_a_lack_of_memory_fails_one_turn(breakable: Driver, error: BaseException) -> None:
    assert is_out_of_memory(error)
    failed = break_off(breakable, error)
    assert isinstance(failed, Failed)
    assert failed.kind == "retry"
    assert failed.message.startswith("out of memory")
    assert breakable.core.info.slots == 1, "fewer are offered"


@pytest.mark.parametrize("error", FAULTS, ids=named)
def test_another_fault_ends_the_engine(breakable: Driver, error: BaseException) -> None:
    """It comes out of ``step``."""
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as caught:
        break_off(breakable, error)
    assert caught.value is error
    assert breakable.core.info.slots == 2
