"""What an engine is to the rest of the worker.

An engine turns text segments into native-rate audio. It knows nothing of Redis, sessions or
frames. Everything on the Redis side knows nothing of any engine beyond this module.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Protocol

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

Samples = NDArray[np.float32]
"""Mono audio, shape ``[n]``, nominally in [-1, 1], at the engine's native rate."""


GAIN_LUFS = -16.0
"""The loudness (ITU-R BS.1770) that a voice's known gain is meant for."""


class EngineError(Exception):
    """An engine failed at its work. The turn may be tried again, here or on another worker."""


class EngineLoadError(EngineError):
    """A model could not be loaded: its files, its runtime or its hardware are missing."""


class CannotSpeakError(EngineError):
    """This turn can never be spoken (a voice or mode the model lacks): trying again is no use."""


class Segment(msgspec.Struct, frozen=True):
    """A piece of a turn's text that is spoken in one breath.

    ``index`` counts the turn's segments from 0; ``start`` and ``end`` are the character offsets
    in the turn's whole text between which it was found. ``open``: its sentence goes on in the next
    segment; an engine that speaks text while it is written may speak them as one.
    """

    index: int
    text: str
    start: int
    end: int
    open: bool = False


class SegmentLimits(msgspec.Struct, frozen=True):
    """How an engine likes its text cut, in characters.

    The turn's first segment is cut shorter, so that its audio comes early.
    """

    first_chars: Annotated[int, Meta(ge=1)] = 80
    max_chars: Annotated[int, Meta(ge=1)] = 240


class Mark(msgspec.Struct, frozen=True):
    """``segment`` begins at sample ``offset`` of the chunk that carries this mark.

    A turn can be taken up there, unless the segment is spoken as one with those before it: then
    ``resumable`` is false, and the place itself is an estimate.
    """

    offset: int
    segment: Segment
    resumable: bool = True


class Chunk(msgspec.Struct, frozen=True):
    """A stretch of audio, gapless with the one before it: float32 ``[n]`` at the native rate."""

    samples: Samples
    marks: tuple[Mark, ...] = ()


class TurnSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How one turn is to be spoken. ``voice`` is one of the engine's voices.

    ``streamed``: its text is being written while it is spoken.
    """

    voice: str
    seed: int
    speed: float = 1.0
    mode: str | None = None
    instruct: str | None = None
    streamed: bool = False


class EngineMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine takes of its device's memory, in MiB.

    ``used_mb`` is what this engine holds, ``total_mb`` what the device has. ``per_session_mb``
    comes with each turn that is spoken, ``per_voice_mb`` once with each voice in use.
    """

    used_mb: float
    total_mb: float
    per_session_mb: float
    per_voice_mb: float


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a loaded engine can do. ``native_rate`` is in Hz, read from the model itself.

    ``slots`` is how many turns it speaks at once without falling behind real time; like ``memory``
    it may change while the engine is loaded. ``streamed_limits`` are the limits for text that is
    written while it is spoken, where the engine wants others. ``gains`` are linear gains that bring
    voices to ``GAIN_LUFS``, where that was measured before. ``capacity`` says in names and values
    what bounds ``slots``. ``synthetic`` says that what it makes is a test signal and no voice.
    """

    native_rate: Annotated[int, Meta(ge=1, le=192_000)]
    slots: Annotated[int, Meta(ge=0, le=10_000)]
    voices: tuple[str, ...]
    default_voice: str
    languages: tuple[str, ...]
    modes: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    limits: SegmentLimits = SegmentLimits()
    streamed_limits: SegmentLimits | None = None
    device: str = "cpu"
    memory_mb: int = 0
    memory: EngineMemory | None = None
    gains: dict[str, float] = {}
    capacity: tuple[tuple[str, str], ...] = ()
    synthetic: bool = False

    def limits_for(self, *, streamed: bool) -> SegmentLimits:
        """How a turn's text is to be cut; ``streamed``: it is written while it is spoken."""
        return self.streamed_limits or self.limits if streamed else self.limits


class Engine(Protocol):
    """One model in memory.

    Calls come in this order: ``load``, ``warm_up``, any number of ``speak`` side by side,
    ``unload``, and perhaps ``load`` again. All run on the worker's event loop and must leave it
    free: inference belongs in threads or processes of the engine's own.
    """

    @property
    def info(self) -> EngineInfo:
        """What the loaded model can do. Raises ``EngineError`` while it is not loaded."""
        ...

    async def load(self) -> None:
        """Bring the model into memory. Raises ``EngineLoadError``."""
        ...

    async def warm_up(self, text: str) -> None:
        """Speak ``text`` to nobody, so that the first real turn is as fast as the second."""
        ...

    def speak(self, spec: TurnSpec, segments: AsyncIterator[Segment]) -> AsyncGenerator[Chunk]:
        """Speak the segments as they arrive, each opened by its mark.

        The samples of a segment depend on the model, ``spec``, its text and its index alone, so
        that a turn can be taken up on another worker from any segment. (Of one that is spoken as
        one with others: of the first of them, with the texts of all.) Closing the generator, or
        cancelling the task that runs it, ends the work within one inner step and frees its slot.

        Raises:
            CannotSpeakError: The spec asks for what this model cannot do.
            EngineError: The work failed.
        """
        ...

    async def lost(self) -> str:
        """Wait until the loaded engine cannot speak any more, by itself; returns why.

        Its turns have failed then. ``unload`` it; loading another is the remedy. An engine that
        lives in this process is never lost.
        """
        ...

    async def unload(self) -> None:
        """Give all memory back. Safe to call twice, and after a failed load."""
        ...
