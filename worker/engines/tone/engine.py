"""A synthetic engine: a test signal with the rhythm of speech, at next to no cost.

It is for load tests and demonstrations of scale. It makes a buzz with syllables, which nobody can
take for a voice, and its info says ``synthetic``.
"""

import hashlib
import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass

import anyio
import numpy as np

from voicefleet.worker.engines.protocol import (
    CannotSpeakError,
    Chunk,
    EngineError,
    EngineInfo,
    EngineLoadError,
    Mark,
    Samples,
    Segment,
    TurnSpec,
)
from voicefleet.worker.engines.tone.family import ToneConfig
from voicefleet.worker.voicepacks.voicepack import Voicepack

RATE = 24_000
"""Native rate in Hz."""

SECONDS_PER_CHAR = 0.065
PAUSE_S = 0.08
_FADE = RATE // 100
_SYLLABLES = 48
_PITCH_HZ = {"tone-a": 110.0, "tone-b": 196.0}


class ToneEngine:
    """Speaks any text as a test signal. ``config`` sets the speed and latency it simulates."""

    def __init__(self, pack: Voicepack, config: ToneConfig) -> None:
        self._pack = pack
        self._config = config
        self._babble: dict[str, _Babble] | None = None

    @property
    def info(self) -> EngineInfo:
        """What it can do. Raises ``EngineError`` while it is not loaded."""
        babble = self._loaded()
        return EngineInfo(
            native_rate=RATE,
            slots=self._config.slots,
            voices=tuple(babble),
            default_voice=self._pack.default_voice or next(iter(babble)),
            languages=self._pack.languages,
            capabilities=self._pack.capabilities,
            memory_mb=math.ceil(sum(one.table.nbytes for one in babble.values()) / 2**20),
            synthetic=True,
        )

    async def load(self) -> None:
        """Make the signal's tables: some 50 ms of work."""
        if self._pack.default_voice not in (None, *_PITCH_HZ):
            raise EngineLoadError(
                f"{self._pack.model_id}: default_voice {self._pack.default_voice!r} is not one of "
                f"{', '.join(_PITCH_HZ)}"
            )
        chunk = RATE * self._config.chunk_ms // 1000
        self._babble = {
            voice: await anyio.to_thread.run_sync(_render, pitch, chunk)
            for voice, pitch in _PITCH_HZ.items()
        }

    async def warm_up(self, text: str) -> None:
        """Does nothing: no turn makes a later one faster."""

    async def speak(
        self, spec: TurnSpec, segments: AsyncIterator[Segment]
    ) -> AsyncGenerator[Chunk]:
        """Speak the segments. See ``Engine.speak``."""
        babble = self._loaded().get(spec.voice)
        if babble is None:
            raise CannotSpeakError(f"unknown voice; the voices are {', '.join(_PITCH_HZ)}")
        if spec.mode is not None or spec.instruct is not None:
            raise CannotSpeakError("a test signal has no modes and takes no instructions")
        wait = self._config.latency_ms / 1000
        async for segment in segments:
            marks = (Mark(0, segment),)
            for samples in babble.segment(spec, segment):
                wait += self._config.rtf * len(samples) / RATE
                # sleep(0) is a checkpoint: cancellation is noticed in every chunk.
                await anyio.sleep(wait)
                yield Chunk(samples, marks)
                marks, wait = (), 0.0

    async def lost(self) -> str:
        """Never returns."""
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async def unload(self) -> None:
        """Free the tables."""
        self._babble = None

    def _loaded(self) -> "dict[str, _Babble]":
        if self._babble is None:
            raise EngineError("the tone engine is not loaded")
        return self._babble


@dataclass(frozen=True)
class _Babble:
    """An endless murmur of one pitch, kept as one period and a chunk more.

    ``table`` float32 ``[period + chunk]``, read-only, so that any chunk of the murmur is a view
    of it; ``onsets`` are the samples at which syllables begin, all zero crossings.
    """

    table: Samples
    period: int
    chunk: int
    onsets: tuple[int, ...]

    def segment(self, spec: TurnSpec, segment: Segment) -> Iterator[Samples]:
        """The segment's chunks: murmur from a syllable chosen by the text's hash, then a pause."""
        spoken = round(RATE * SECONDS_PER_CHAR * max(1, len(segment.text)) / spec.speed)
        total = spoken + round(RATE * PAUSE_S / spec.speed)
        key = f"{spec.seed}\0{spec.voice}\0{segment.index}\0{segment.text}"
        digest = hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=4).digest()
        onset = self.onsets[int.from_bytes(digest, "big") % len(self.onsets)]
        for start in range(0, total, self.chunk):
            length = min(self.chunk, total - start)
            at = (onset + start) % self.period
            samples = self.table[at : at + length]
            if start < _FADE or start + length > spoken - _FADE:
                samples = samples * _window(start, length, spoken)
            yield samples


def _window(start: int, length: int, spoken: int) -> Samples:
    """Fades at both ends of the ``spoken`` samples and zeros after them, for one chunk."""
    position = np.arange(start, start + length, dtype=np.float32)
    return np.clip(np.minimum(position, spoken - 1 - position) / _FADE, 0.0, 1.0, dtype=np.float32)


def _render(pitch: float, chunk: int) -> _Babble:
    """Compute one voice's murmur: syllables of 120 to 240 ms on a gliding pitch."""
    rng = np.random.Generator(np.random.PCG64(round(pitch)))
    lengths = rng.integers(int(0.12 * RATE), int(0.24 * RATE), _SYLLABLES)
    onsets = (0, *np.cumsum(lengths)[:-1].tolist())
    syllables = [_syllable(pitch * rng.uniform(0.85, 1.2), int(n), rng) for n in lengths]
    murmur = np.concatenate(syllables)
    # RMS near -18 dBFS, below -6 dBFS at its peaks once it is brought to -16 LUFS.
    murmur *= 0.125 / math.sqrt(float(np.mean(np.square(murmur))))
    table = np.concatenate((murmur, np.resize(murmur, chunk))).astype(np.float32)
    table.flags.writeable = False
    return _Babble(table, len(murmur), chunk, onsets)


def _syllable(pitch: float, length: int, rng: np.random.Generator) -> np.ndarray:
    """One syllable: four harmonics in phases that keep peaks low, swelling from and to zero."""
    position = np.linspace(0.0, 1.0, length, endpoint=False)
    glide = 1.0 + 0.06 * np.sin(math.pi * position) * rng.uniform(-1.0, 1.0)
    phase = 2 * math.pi * np.cumsum(pitch * glide) / RATE
    colour = rng.uniform(0.25, 0.6)
    signal = sum(
        colour ** (k - 1) * np.sin(k * phase - math.pi * k * (k - 1) / 4) for k in range(1, 5)
    )
    swell = np.minimum(1.0, 4 * np.minimum(position, 1 - position)) * 0.6 + 0.4
    edge = np.clip(np.minimum(np.arange(length), np.arange(length)[::-1]) / (0.008 * RATE), 0, 1)
    return np.asarray(signal) * swell * np.sin(edge * math.pi / 2)
