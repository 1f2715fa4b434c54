"""Load a model without Redis, warm it up and speak one text, and time each step."""

import time
from collections.abc import Mapping
from contextlib import aclosing

import msgspec
import numpy as np

from voicefleet.schemas.request import TextPiece
from voicefleet.worker.config.sections import Config
from voicefleet.worker.engines.hosting.engine import HostedEngine
from voicefleet.worker.engines.hosting.in_process import InProcessEngine
from voicefleet.worker.engines.protocol import Samples, TurnSpec
from voicefleet.worker.local import standalone
from voicefleet.worker.text.feed import TextFeed

SEED = 0


class OneShot(msgspec.Struct, frozen=True, kw_only=True):
    """What was spoken, float32 ``[n]`` at ``rate`` Hz as the engine made it, and how long it took.

    ``phases_ms`` are the engine's own times of its load and warm-up; empty for most engines.
    ``first_chunk_ms`` and ``spoken_ms`` are counted from the text to the first chunk and the last.
    """

    model: str
    device: str
    rate: int
    samples: Samples
    load_ms: float
    warm_up_ms: float
    phases_ms: Mapping[str, float]
    first_chunk_ms: float
    spoken_ms: float

    @property
    def audio_s(self) -> float:
        """The audio's length in seconds."""
        return len(self.samples) / self.rate

    @property
    def rtf(self) -> float:
        """The real-time factor: synthesis time per second of audio."""
        return self.spoken_ms / 1000 / self.audio_s if self.audio_s else 0.0


async def one_shot(config: Config, text: str, *, in_process: bool = False) -> OneShot:
    """Speak ``text`` once with the configured default model, or the first that is served.

    Args:
        config: A worker's.
        text: Cut into segments as a request's would be.
        in_process: Run the engine in this process and no other, for profilers.

    Raises:
        UnknownModelError: No model is configured, or it has no voicepack or no engine.
        EngineError: It could not be loaded or could not speak.
    """
    pack = standalone.pack_of(config)
    clock = _Clock()
    async with standalone.loaded(pack, config, in_process=in_process) as engine:
        load_ms = clock.lap_ms()
        if config.model_manager.warmup_enabled:
            await engine.warm_up(config.model_manager.warmup_text)
        warm_up_ms = clock.lap_ms()
        info = engine.info
        feed = TextFeed(info.limits, config.worker.text_timeout_s, config.worker.max_stream_chars)
        feed.push(TextPiece(text=text, end=True))
        spec = TurnSpec(voice=info.default_voice, seed=SEED)
        made: list[Samples] = []
        arrivals_ms: list[float] = []
        async with aclosing(engine.speak(spec, feed.segments())) as chunks:
            async for chunk in chunks:
                made.append(chunk.samples)
                arrivals_ms.append(clock.elapsed_ms())
        timed = isinstance(engine, HostedEngine | InProcessEngine)
        return OneShot(
            model=pack.model_id,
            device=info.device,
            rate=info.native_rate,
            samples=np.concatenate([np.zeros(0, np.float32), *made]),
            load_ms=load_ms,
            warm_up_ms=warm_up_ms,
            phases_ms=engine.timings if timed else {},
            first_chunk_ms=arrivals_ms[0] if arrivals_ms else 0.0,
            spoken_ms=arrivals_ms[-1] if arrivals_ms else 0.0,
        )


class _Clock:
    def __init__(self) -> None:
        self._since = time.perf_counter()

    def elapsed_ms(self) -> float:
        return (time.perf_counter() - self._since) * 1000

    def lap_ms(self) -> float:
        lap, self._since = self.elapsed_ms(), time.perf_counter()
        return lap
