"""``demo``: a server, a worker, one request and a WAV file; nothing else is left behind."""

import array
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import anyio

from voicefleet.cli.configs import locate
from voicefleet.cli.failure import Failure, require
from voicefleet.cli.meter import Meter
from voicefleet.cli.up import default_model, redis_cli
from voicefleet.cli.worker_process import WorkerProcess
from voicefleet.embedded_server import EmbeddedServer, ServerStartError
from voicefleet.producer.client import VoiceFleet
from voicefleet.producer.errors import VoiceFleetError
from voicefleet.producer.wav import WavWriter

TEXT: Final = (
    "Hello from the fleet. One command put this text into Redis, "
    "a worker took it, and every twenty milliseconds of what you hear came back as a frame."
)
SPEAK_TIMEOUT_S: Final = 60.0
AUDIBLE: Final = 500
"""A peak (full scale is 32 767) that silence and rounding do not reach."""


async def demo(
    text: str = TEXT,
    *,
    out: Path = Path("demo.wav"),
    config: Path | None = None,
    debug: bool = False,
) -> None:
    """Speak a sentence through a whole fleet on this machine, into demo.wav.

    Parameters
    ----------
    config
        The worker's configuration. Default: configs/piper.yaml.
    debug
        Show a traceback of errors.
    """
    require("embedded", "worker" if config else "piper")
    path = locate(config, "piper.yaml")
    model = default_model(path)
    began = time.monotonic()
    try:
        with TemporaryDirectory(prefix="voicefleet-demo-") as scratch:
            log = Path(scratch, "worker.log")
            async with (
                EmbeddedServer.start() as server,
                WorkerProcess.start(path, server.url, name="demo", log=log) as worker,
                VoiceFleet(server.url) as fleet,
            ):
                _note(f"Valkey at {server.url}; starting a worker with {model}")
                await worker.ready(fleet)
                _note(f"worker ready after {time.monotonic() - began:.1f} s")
                await _speak(fleet, text, model, out)
    except (ServerStartError, VoiceFleetError) as error:
        raise Failure(f"the demo failed: {error}") from error
    print(f"""\
{out}: 48 kHz, mono, 16 bit. Server and worker are gone again.

What happened: the text went into the stream tts:requests:{model}, the worker took it from there,
and wrote a start entry, frames of 20 ms and an end entry to tts:audio:{{demo}}.
To see for yourself, run `voicefleet up --port 6399` and, beside it:

{redis_cli(6399, model)}
""")  # fmt: skip


async def _speak(fleet: VoiceFleet, text: str, model: str, out: Path) -> None:
    peak = 0
    turn = fleet.session("demo").speak(text, model=model)
    try:
        with (
            anyio.fail_after(SPEAK_TIMEOUT_S),
            out.open("wb") as file,
            WavWriter(file, 48000) as wav,
        ):
            async with turn:
                with Meter(turn) as meter:
                    async for frame in turn:
                        meter.count(frame)
                        wav.write(frame.pcm)
                        peak = max(peak, _peak(frame.pcm))
    except TimeoutError:
        raise Failure(
            f"the demo failed: no end of the turn within {SPEAK_TIMEOUT_S:.0f} s"
        ) from None
    if turn.end is None or turn.end.reason != "completed" or peak < AUDIBLE:
        reason = "no end" if turn.end is None else turn.end.reason
        raise Failure(f"the demo failed: {reason}, loudest sample {peak} of 32767")


def _peak(pcm: bytes) -> int:
    samples = array.array("h", pcm)
    if sys.byteorder == "big":
        samples.byteswap()
    return max(abs(sample) for sample in samples)


def _note(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
