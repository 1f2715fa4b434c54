"""An engine that speaks in Morse code."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import msgspec
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
from voicefleet.worker.voicepacks.voicepack import Voicepack, VoicepackError
from voicefleet_morse.family import MorseConfig

RATE = 16_000
"""Native rate in Hz."""

EDGE_S = 0.004
"""A tone swells and fades for this long: without, it clicks."""


def read_alphabet(path: Path) -> dict[str, str]:
    """The signs by letter, as dots and dashes: ``{"a": ".-"}``.

    Raises:
        VoicepackError: It is no such file.
    """
    try:
        signs = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError) as error:
        raise VoicepackError(f"{path}: {error}") from None
    if wrong := [letter for letter, sign in signs.items() if not sign or set(sign) - set(".-")]:
        raise VoicepackError(f"{path}: {wrong[0]!r} is not made of dots and dashes")
    return signs


class MorseEngine:
    """Sends each letter as tones of one and three units. See ``Engine``."""

    def __init__(self, pack: Voicepack, config: MorseConfig) -> None:
        self._pack = pack
        self._config = config
        self._signs: dict[str, str] | None = None

    @property
    def info(self) -> EngineInfo:
        """What it can do. Raises ``EngineError`` while it is not loaded."""
        self._loaded()
        return EngineInfo(
            native_rate=RATE,
            slots=self._config.slots,
            voices=("key",),
            default_voice="key",
            languages=self._pack.languages,
            synthetic=True,
        )

    async def load(self) -> None:
        """Read the alphabet. Raises ``EngineLoadError``."""
        try:
            path = self._pack.file("alphabet")
            self._signs = await anyio.to_thread.run_sync(read_alphabet, path)
        except VoicepackError as error:
            raise EngineLoadError(str(error)) from None

    async def warm_up(self, text: str) -> None:
        """Nothing gets faster by use here."""

    async def speak(
        self, spec: TurnSpec, segments: AsyncIterator[Segment]
    ) -> AsyncGenerator[Chunk]:
        """Speak the segments, a letter in each chunk. See ``Engine.speak``."""
        signs = self._loaded()
        if spec.voice != "key":
            raise CannotSpeakError("unknown voice; the only one is key")
        if spec.mode is not None or spec.instruct is not None:
            raise CannotSpeakError("Morse code has no modes and takes no instructions")
        async for segment in segments:
            marks = (Mark(0, segment),)  # where the segment begins: in its first chunk
            for samples in self._send(signs, segment.text, spec.speed):
                await anyio.lowlevel.checkpoint()  # a turn that is stopped ends here
                yield Chunk(samples, marks)
                marks = ()

    async def lost(self) -> str:
        """Never returns: what runs in the worker's process cannot be lost by itself."""
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async def unload(self) -> None:
        """Forget the alphabet."""
        self._signs = None

    def _loaded(self) -> dict[str, str]:
        if self._signs is None:
            raise EngineError(f"{self._pack.model_id} is not loaded")
        return self._signs

    def _send(self, signs: dict[str, str], text: str, speed: float) -> Iterator[Samples]:
        """Each letter with the gap behind it; float32 ``[n]``."""
        unit_s = 60 / (50 * self._config.wpm * speed)  # PARIS, the standard word, has 50 units
        gap_s = 60 / (50 * self._config.effective_wpm * speed)
        for word in text.casefold().split():
            for letter in word:
                tones = [self._tone(unit_s, sign) for sign in signs.get(letter, "")]
                if tones:
                    yield np.concatenate([*tones, _silence(3 * gap_s - unit_s)])
            yield _silence(4 * gap_s)

    def _tone(self, unit_s: float, sign: str) -> Samples:
        """A dot or a dash, and the gap of one unit behind it."""
        seconds = unit_s * (3 if sign == "-" else 1)
        times = np.arange(round(seconds * RATE), dtype=np.float32) / RATE
        swell = np.clip(np.minimum(times, seconds - times) / EDGE_S, 0, 1)
        tone = 0.25 * swell * np.sin(2 * np.pi * self._config.pitch_hz * times)
        return np.concatenate([tone.astype(np.float32), _silence(unit_s)])


def _silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * RATE), dtype=np.float32)
