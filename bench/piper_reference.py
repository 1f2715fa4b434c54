"""Piper without a fleet: its command line, and its Python API with one thread.

Both are kept away from their load: the process runs, the voice is in memory and has spoken once
before a clock starts. The command line writes raw audio as it makes it and has no word for the end
of a text, so a process speaks one text: after its standard input is closed, the last byte is the
end.
"""

import multiprocessing
import os
import subprocess
import sys
import time
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import IO, Final, Self, cast

import msgspec

from bench.testbed import ROOT

AS_IT_COMES: Final = "piper"
ONE_THREAD: Final = "bench.piper_one_thread"
WARM_UP: Final = "This sentence warms the voice up before anything is measured."
_QUIET_S: Final = 0.3
_READ_BYTES: Final = 1 << 16
_spawn = multiprocessing.get_context("spawn")


class Spoken(msgspec.Struct, frozen=True):
    """One text: when its first and last audio arrived, and its length."""

    first_s: float
    total_s: float
    audio_s: float

    @property
    def rtf(self) -> float:
        """Processing time per second of audio."""
        return self.total_s / self.audio_s


def command_line(module: str, model: Path, rate: int, text: str, cpu: int | None) -> Spoken:
    """``python -m <module> --output-raw`` with the text on its standard input, warmed up.

    ``module`` is ``piper`` as it comes, or the same with one thread.
    """
    command = [sys.executable, "-m", module, "--model", str(model), "--output-raw"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        pin(process.pid, cpu)
        stdin, stdout = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)
        stdin.write(f"{WARM_UP}\n".encode())
        stdin.flush()
        _read_until_quiet(stdout)
        begin = time.monotonic()
        stdin.write(f"{text}\n".encode())
        stdin.close()
        first = last = begin
        size = 0
        while data := os.read(stdout.fileno(), _READ_BYTES):
            last = time.monotonic()
            first = first if size else last
            size += len(data)
    return Spoken(first - begin, last - begin, size / 2 / rate)


def _read_until_quiet(stdout: IO[bytes]) -> None:
    """Read until nothing more comes."""
    os.read(stdout.fileno(), _READ_BYTES)
    os.set_blocking(stdout.fileno(), False)
    try:
        quiet_at = time.monotonic() + _QUIET_S
        while time.monotonic() < quiet_at:
            try:
                os.read(stdout.fileno(), _READ_BYTES)
                quiet_at = time.monotonic() + _QUIET_S
            except BlockingIOError:
                time.sleep(_QUIET_S / 30)
    finally:
        os.set_blocking(stdout.fileno(), True)


class Api:
    """``PiperVoice.synthesize`` in a process of its own, one thread; texts go in by a pipe.

    Clocks run inside that process, so the pipe costs nothing.
    """

    def __init__(self, model: Path, cpu: int | None) -> None:
        self._pipe, theirs = _spawn.Pipe()
        self._process = _spawn.Process(
            target=_serve_api, args=(model, cpu, theirs), daemon=True, name="piper-api"
        )

    def __enter__(self) -> Self:
        self._process.start()
        self.speak(WARM_UP)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def speak(self, text: str) -> Spoken:
        """Speak a text."""
        self._pipe.send(text)
        return self._pipe.recv()


def _serve_api(model: Path, cpu: int | None, pipe: Pipe) -> None:
    # Other benches run without the piper extra.
    import onnxruntime  # noqa: PLC0415
    from piper import PiperVoice  # noqa: PLC0415
    from piper.config import PiperConfig  # noqa: PLC0415

    pin(os.getpid(), cpu)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    config = msgspec.json.decode(Path(f"{model}.json").read_bytes())
    voice = PiperVoice(session=session, config=PiperConfig.from_dict(config))
    while True:
        text = pipe.recv()
        begin = time.monotonic()
        first = last = begin
        audio_s = 0.0
        for chunk in voice.synthesize(text):
            pcm = chunk.audio_int16_bytes
            last = time.monotonic()
            first = first if audio_s else last
            audio_s += len(pcm) / 2 / chunk.sample_rate
        pipe.send(Spoken(first - begin, last - begin, audio_s))


def pin(pid: int, cpu: int | None) -> None:
    """Pin a process and its threads to one core, where the system can."""
    if cpu is not None:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {cpu})


def core_to_pin() -> int | None:
    """The last core, which the kernel uses least for itself."""
    return max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
