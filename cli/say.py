"""``say``: speak a text, or what is typed or piped in, into a file or a pipe."""

import os
import re
import stat
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Annotated, Final

import anyio
from cyclopts import Parameter

from voicefleet.cli import stdio
from voicefleet.cli.failure import Failure
from voicefleet.cli.meter import Meter
from voicefleet.cli.target import DEFAULT, Target
from voicefleet.producer.client import VoiceFleet
from voicefleet.producer.session import SpeakOptions
from voicefleet.producer.turn import StreamedTurn, Turn
from voicefleet.producer.wav import WavWriter, header

PAUSE_S: Final = 0.03
"""When the input pauses this long, the text so far is spoken without waiting for more."""

NOTHING: Final = "there is nothing to say: the text is empty, or white space alone"

KEEP_ALIVE_S: Final = 10.0
"""How often to flush while the user thinks: a worker ends a turn that gets no text for 30 s."""

STANDARD_STREAM: Final = "-"

Sink = Callable[[bytes], Awaitable[None]]


def _no_option(_: object, value: object) -> None:
    """Refuse a value that looks like an option.

    Where "-" may be a value, cyclopts takes every word that begins with it as one.
    """
    if re.fullmatch(r"--?[A-Za-z]\S*", str(value)):
        raise ValueError("It reads like an option, and is none that fits here.")


OrStandardStream = Parameter(allow_leading_hyphen=True, validator=_no_option)


async def say(
    text: Annotated[str | None, OrStandardStream] = None,
    *,
    model: str | None = None,
    voice: str | None = None,
    speed: float | None = None,
    seed: int | None = None,
    session: str | None = None,
    sample_rate: int = 48000,
    lead_ms: int | None = None,
    out: Annotated[Path | None, OrStandardStream] = None,
    target: Target = DEFAULT,
) -> None:
    """Speak TEXT, or standard input as it is typed or piped.

    Audio goes to a WAV file, or raw (16 bit, mono) to a pipe:
    voicefleet say Hello. | aplay -q -t raw -f S16_LE -c 1 -r 48000

    Parameters
    ----------
    text
        What to say; left out or "-" for standard input.
    model
        Default: the model that is served, if there is just one.
    sample_rate
        8000, 16000, 24000 or 48000.
    lead_ms
        How far ahead of real time audio may come; 0 for as fast as it is synthesised.
    out
        A WAV file; "-" writes WAV to standard output.
    """
    if text is not None and not text.strip():
        raise Failure(NOTHING)
    text = None if text == STANDARD_STREAM else text
    if (out is None or str(out) == STANDARD_STREAM) and sys.stdout.isatty():
        raise Failure("say where the audio goes: --out hello.wav, or a pipe to a player")
    async with target.fleet() as fleet:
        options: SpeakOptions = {
            "model": model or await _only_model(fleet),
            "sample_rate": sample_rate,
        }
        if voice is not None:
            options["voice"] = voice
        if speed is not None:
            options["speed"] = speed
        if seed is not None:
            options["seed"] = seed
        if lead_ms is not None:
            options["lead_ms"] = lead_ms
        async with _sink(out, sample_rate) as sink:
            if text is not None:
                async with fleet.session(session).speak(text, **options) as turn:
                    await _play(turn, sink, live=True)
                return
            streamed = fleet.session(session).stream(**options)
            async with streamed, anyio.create_task_group() as tasks:
                tasks.start_soon(_type_into, streamed)
                await _play(streamed, sink, live=not sys.stdin.isatty())
                tasks.cancel_scope.cancel()


async def _only_model(fleet: VoiceFleet) -> str:
    served = list(await fleet.models())
    match served:
        case [model]:
            return model
        case []:
            raise Failure("no model is served now; start a worker, or try `voicefleet up`")
        case _:
            raise Failure(f"name a model with --model: {', '.join(served)}")


async def _play(turn: Turn, sink: Sink, *, live: bool) -> None:
    with Meter(turn, live=live) as meter:
        async for frame in turn:
            meter.count(frame)
            await sink(frame.pcm)


async def _type_into(turn: StreamedTurn) -> None:
    fd = sys.stdin.fileno()
    flushed, blank = True, True
    last = time.monotonic()
    async with aclosing(stdio.lines(fd, pause_s=PAUSE_S)) as pieces:
        async for piece in pieces:
            if turn.over:
                return
            if piece is not None:
                await turn.write(piece)
                flushed, blank = False, blank and not piece.strip()
            elif not flushed or time.monotonic() - last > KEEP_ALIVE_S:
                await turn.flush()
                flushed = True
            else:
                continue
            last = time.monotonic()
    if blank:
        raise Failure(NOTHING)
    await turn.end_text()


@asynccontextmanager
async def _sink(out: Path | None, sample_rate: int) -> AsyncGenerator[Sink]:
    fd = sys.stdout.fileno()
    in_file = stat.S_ISREG(os.fstat(fd).st_mode)
    to_stdout = out is None or str(out) == STANDARD_STREAM
    if out is None or (to_stdout and not in_file):
        if out is not None:
            await stdio.write(fd, header(sample_rate))
        elif in_file:
            print("voicefleet: raw 16-bit PCM, without a WAV header: see --out", file=sys.stderr)

        async def to_pipe(pcm: bytes) -> None:
            await stdio.write(fd, pcm)

        yield to_pipe
        return
    opened = os.fdopen(os.dup(fd), "wb") if to_stdout else out.open("wb")
    with opened as file, WavWriter(file, sample_rate) as wav:

        async def to_file(pcm: bytes) -> None:
            wav.write(pcm)
            file.flush()  # a valid WAV file at any time, to be played while it grows

        yield to_file
