"""How many turns an engine keeps up with: it is measured while it speaks many at once."""

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import anyio
import msgspec

from voicefleet.schemas.request import TextPiece
from voicefleet.worker.config.sections import WorkerConfig
from voicefleet.worker.engines.protocol import Engine, Segment, TurnSpec
from voicefleet.worker.text.feed import TextFeed

TEXT: Final = (
    "The birch canoe slid on the smooth planks. Glue the sheet to the dark blue background. "
    "It is easy to tell the depth of a well. These days a chicken leg is a rare dish."
)
"""Some 10 s of speech, in sentences of a conversation's length."""


class Trial(msgspec.Struct, frozen=True):
    """Turns that started together, which is the hardest start, each read as fast as it comes.

    ``speed`` is the audio made in a second by all together, in seconds: as many turns as that keep
    up with real time. ``first_audio_s`` says when each turn was first heard, and ``silence_s`` how
    long its listener, who plays from the first chunk on, waits for later ones in all; both in
    seconds, sorted.
    """

    speed: float
    first_audio_s: tuple[float, ...]
    silence_s: tuple[float, ...]

    @property
    def sustained(self) -> int:
        """How many turns the engine can speak at once without falling behind real time."""
        return math.floor(self.speed)


async def run(engine: Engine, turns: int) -> Trial:
    """Let a loaded engine speak ``turns`` turns at once.

    Raises:
        ExceptionGroup: Of the ``EngineError`` of each turn that failed.
    """
    first_audio: list[float] = []
    silence: list[float] = []
    audio_s = 0.0

    async def listen(seed: int) -> None:
        nonlocal audio_s
        played_until = math.inf
        waited = 0.0
        spec = TurnSpec(voice=engine.info.default_voice, seed=seed)
        async with aclosing(engine.speak(spec, _segments(engine))) as chunks:
            async for chunk in chunks:
                now = anyio.current_time()
                if math.isinf(played_until):
                    played_until = now
                    first_audio.append(now - began)
                late = max(0.0, now - played_until)
                waited += late
                seconds = len(chunk.samples) / engine.info.native_rate
                played_until += late + seconds
                audio_s += seconds
        silence.append(waited)

    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for seed in range(turns):
            tasks.start_soon(listen, seed)
    took = anyio.current_time() - began
    return Trial(audio_s / took, tuple(sorted(first_audio)), tuple(sorted(silence)))


def _segments(engine: Engine) -> AsyncGenerator[Segment]:
    worker = WorkerConfig()
    feed = TextFeed(engine.info.limits, worker.text_timeout_s, worker.max_stream_chars)
    feed.push(TextPiece(text=TEXT, end=True))
    return feed.segments()
