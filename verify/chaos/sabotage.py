"""An engine that fails as its text says: the tone engine, with a first word that is obeyed.

=========== ================================================================================
first word  what it does
=========== ================================================================================
Poison      ends the worker's process before the turn has a frame, each time it is tried
Stumble     raises ``EngineError`` each time
Falter      raises it after 10 frames, the first time in a process (for one seed)
Hang        makes 10 frames and then nothing more, the first time in a process (for one seed)
Gorge       raises ``MemoryError`` each time
=========== ================================================================================
"""

import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Final

import anyio
import numpy as np

from voicefleet.worker.engines.protocol import Chunk, EngineError, EngineInfo, Segment, TurnSpec
from voicefleet.worker.engines.tone import family as tone
from voicefleet.worker.engines.tone.engine import RATE, ToneEngine
from voicefleet.worker.engines.tone.family import ToneConfig
from voicefleet.worker.voicepacks import voicepack
from voicefleet.worker.voicepacks.voicepack import Voicepack

MODEL: Final = "saboteur-test"
TONE: Final = Path("tone/test")
SLOTS: Final = 8

POISONED: Final = 86
"""The exit status of a process that was poisoned."""

_CUT: Final = 10 * RATE // 50
"""10 frames, in samples."""


class SaboteurEngine:
    """Speaks as the tone engine, unless the first word says otherwise."""

    def __init__(self, pack: Voicepack, config: ToneConfig) -> None:
        self._tone = ToneEngine(pack, config)
        self._tried: set[tuple[str, int]] = set()

    @property
    def info(self) -> EngineInfo:
        """The tone engine's, with slots of its own."""
        info = self._tone.info
        return EngineInfo(
            native_rate=info.native_rate,
            slots=SLOTS,
            voices=info.voices,
            default_voice=info.default_voice,
            languages=info.languages,
            capabilities=info.capabilities,
            memory_mb=info.memory_mb,
            synthetic=True,
        )

    async def load(self) -> None:
        """As the tone engine."""
        await self._tone.load()

    async def warm_up(self, text: str) -> None:
        """As the tone engine."""
        await self._tone.warm_up(text)

    async def speak(
        self, spec: TurnSpec, segments: AsyncIterator[Segment]
    ) -> AsyncGenerator[Chunk]:
        """Speak the segments, or do as the first word of the first one says."""
        orders: set[str] = set()

        async def heed() -> AsyncGenerator[Segment]:
            async for segment in segments:
                if segment.index == 0:
                    word = segment.text.partition(" ")[0].strip(".,:;!?").lower()
                    self._obey_at_once(word)
                    orders.update({word} & {"falter", "hang"})
                yield segment

        made = 0
        async with aclosing(self._tone.speak(spec, heed())) as audio:
            async for chunk in audio:
                if orders and made + len(chunk.samples) >= _CUT:
                    word = orders.pop()
                    if (word, spec.seed) not in self._tried:
                        self._tried.add((word, spec.seed))
                        yield Chunk(np.array(chunk.samples[: _CUT - made]), chunk.marks)
                        if word == "falter":
                            raise EngineError("faltered, as asked")
                        await anyio.sleep_forever()
                made += len(chunk.samples)
                yield chunk

    async def lost(self) -> str:
        """Never returns."""
        return await self._tone.lost()

    async def unload(self) -> None:
        """As the tone engine."""
        await self._tone.unload()

    def _obey_at_once(self, word: str) -> None:
        if word == "poison":
            os._exit(POISONED)  # as a crash: nothing is said to anybody
        if word == "stumble":
            raise EngineError("stumbled, as asked")
        if word == "gorge":
            raise MemoryError("gorged, as asked")


def write_voicepacks(directory: Path, source: Path) -> None:
    """Write the run's voicepacks: the tone's own, copied from ``source``, and the saboteur's."""
    metadata = (source / TONE / voicepack.METADATA).read_text(encoding="utf-8")
    shutil.copytree(source / TONE, directory / TONE)
    folder = directory / FAMILY.name / "test"
    folder.mkdir(parents=True)
    ours = metadata.replace("family: tone", f"family: {FAMILY.name}").replace("tone-test", MODEL)
    (folder / voicepack.METADATA).write_text(ours, encoding="utf-8")


def _slots(_: ToneConfig) -> int:
    return SLOTS


FAMILY: Final = replace(tone.FAMILY, name="saboteur", engine=SaboteurEngine, slots=_slots)
"""What ``plugin/saboteur-0.dist-info`` names: to a worker this is another package's engine."""
