"""``worker``: one worker process, in the foreground."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from voicefleet.cli.configs import locate
from voicefleet.cli.failure import Failure, require
from voicefleet.producer.wav import WavWriter

if TYPE_CHECKING:
    from voicefleet.worker.config.sections import Config
    from voicefleet.worker.local.one_shot import OneShot


async def worker(
    *,
    config: Path | None = None,
    redis_url: str | None = None,
    name: str | None = None,
    set: Annotated[tuple[str, ...], Parameter(negative="")] = (),  # noqa: A002 the option's name
    log_level: Literal["debug", "info", "warning", "error"] | None = None,
    one_shot: str | None = None,
    out: Annotated[str, Parameter(allow_leading_hyphen=True)] = "one-shot.wav",
    in_process: Annotated[bool, Parameter(negative="")] = False,
    debug: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Run a worker. SIGTERM or Ctrl-C drains it, a second one ends it at once.

    Parameters
    ----------
    config
        Its configuration: a file, or the name of one that comes with voicefleet, such as piper.
        Without it the names are listed.
    redis_url
        Also VOICEFLEET_REDIS_URL.
    name
        Unique in the fleet. Default: process id@host.
    set
        section.key=value, above file and environment. Any number of times.
    one_shot
        A text: load the model without Redis, speak this once, print how long it took, and exit.
    out
        With --one-shot: the WAV file to write; - writes none.
    in_process
        With --one-shot: run the engine in this process, where profilers see it.
    debug
        Show a traceback of errors.
    """
    require("worker")
    from voicefleet.worker.config.loading import load  # noqa: PLC0415
    from voicefleet.worker.logs import configure  # noqa: PLC0415
    from voicefleet.worker.service import run, worker_name  # noqa: PLC0415

    flags = {"redis.url": redis_url, "worker.name": name, "logging.level": log_level}
    options = [f"{key}={value}" for key, value in flags.items() if value is not None]
    path = locate(config)
    settings = load(path, environ=os.environ, overrides=(*set, *options), serving=True)
    configure(settings.logging, worker=worker_name(settings))
    if one_shot is not None:
        return await _speak_once(settings, one_shot, out, in_process=in_process)
    if in_process:
        raise Failure("--in-process is for --one-shot: a worker's engine runs as it does best")
    return await run(settings)


async def _speak_once(settings: "Config", text: str, out: str, *, in_process: bool) -> int:
    from voicefleet.worker.local import one_shot as alone  # noqa: PLC0415

    spoken = await alone.one_shot(settings, text, in_process=in_process)
    if out != "-":
        _write(Path(out), spoken)
    print(f"model        {spoken.model} on {spoken.device}")
    print(f"load         {spoken.load_ms:.0f} ms")
    print(f"warm-up      {spoken.warm_up_ms:.0f} ms")
    for phase, ms in spoken.phases_ms.items():
        print(f"  {phase:<10} {ms:.0f} ms")
    print(f"first chunk  {spoken.first_chunk_ms:.1f} ms")
    print(f"audio        {spoken.audio_s:.2f} s in {spoken.spoken_ms:.0f} ms, RTF {spoken.rtf:.4f}")
    if out != "-":
        print(f"written      {out}")
    return 0


def _write(path: Path, spoken: "OneShot") -> None:
    with path.open("wb") as file, WavWriter(file, spoken.rate) as wav:
        wav.write((spoken.samples.clip(-1, 1) * 32767).round().astype("<i2").tobytes())
