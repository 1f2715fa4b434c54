"""A model in memory, and how loud its voices are."""

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial

import anyio
import numpy as np
from anyio import to_thread

from voicefleet.worker.audio.loudness import gain_for
from voicefleet.worker.config.sections import AudioConfig
from voicefleet.worker.engines.protocol import (
    GAIN_LUFS,
    CannotSpeakError,
    Engine,
    EngineInfo,
    Samples,
    Segment,
    TurnSpec,
)
from voicefleet.worker.voicepacks.voicepack import Voicepack

_CALIBRATION_SEED = 0


class LoadedModel:
    """A loaded model: its engine, its voicepack, and the gain of each voice."""

    def __init__(self, engine: Engine, pack: Voicepack, audio: AudioConfig) -> None:
        self.engine = engine
        self.pack = pack
        self._audio = audio
        self._gains: dict[str, float] = {}
        self._measuring: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)

    @property
    def model_id(self) -> str:
        """The id under which the model is served."""
        return self.pack.model_id

    @property
    def info(self) -> EngineInfo:
        """What the model can do."""
        return self.engine.info

    async def gain(self, voice: str) -> float:
        """The linear gain that brings the voice to the configured loudness; 1 where none is wanted.

        A voice whose gain the engine does not know is measured once, by speaking the pack's
        calibration text with a fixed seed, so that every worker finds the same gain.

        Raises:
            CannotSpeakError: The model has no such voice.
            EngineError: The engine could not speak.
        """
        if not self._audio.normalise:
            return 1.0
        if voice not in self.info.voices:
            raise CannotSpeakError(f"unknown voice; the voices are {', '.join(self.info.voices)}")
        known = self.info.gains.get(voice)
        if known is not None:
            return known * 10 ** ((self._audio.target_lufs - GAIN_LUFS) / 20)
        async with self._measuring[voice]:
            if voice not in self._gains:
                self._gains[voice] = await self._measure(voice)
            return self._gains[voice]

    async def _measure(self, voice: str) -> float:
        text = self.pack.calibration_text
        spec = TurnSpec(voice=voice, seed=_CALIBRATION_SEED)
        spoken: list[Samples] = []
        async with aclosing(self.engine.speak(spec, _one(Segment(0, text, 0, len(text))))) as audio:
            async for chunk in audio:
                spoken.append(chunk.samples)  # noqa: PERF401  (aclosing)
        measure = partial(
            gain_for,
            np.concatenate(spoken),
            self.info.native_rate,
            self._audio.target_lufs,
            self._audio.true_peak_dbtp,
        )
        return await to_thread.run_sync(measure)


async def _one(segment: Segment) -> AsyncIterator[Segment]:
    yield segment
