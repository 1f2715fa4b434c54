"""The interface between engines and the rest of the worker.

An engine turns text segments into audio at its native rate. It knows nothing of Redis, sessions or
frames, and the Redis side knows nothing of engines beyond this module.
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
"""The loudness (ITU-R BS.1770) to which an engine's known gains bring its voices."""


class EngineError(Exception):
    """An engine failed. The turn may be tried again, here or on another worker."""


class EngineLoadError(EngineError):
    """A model could not be loaded: its files, its runtime or its hardware are missing."""


class CannotSpeakError(EngineError):
    """This turn asks for a voice or mode that the model lacks: trying again would fail too."""


class Segment(msgspec.Struct, frozen=True):
    """A piece of a turn's text that is spoken in one breath.

    ``index`` counts the turn's segments from 0; ``start`` and ``end`` are the character offsets
    in the turn's whole text between which it stands. ``open`` says that its sentence continues in
    the next segment: an engine that speaks text while it is written may join the two.
    """

    index: int
    text: str
    start: int
    end: int
    open: bool = False


class SegmentLimits(msgspec.Struct, frozen=True):
    """The longest segments that an engine wants, in characters.

    The turn's first segment is shorter, so that its audio comes early.
    """

    first_chars: Annotated[int, Meta(ge=1)] = 80
    max_chars: Annotated[int, Meta(ge=1)] = 240


class Mark(msgspec.Struct, frozen=True):
    """``segment`` begins at sample ``offset`` of the chunk that carries this mark.

    Another worker can continue the turn from there, unless the engine joined the segment with those
    before it: then ``resumable`` is false, and the offset is an estimate.
    """

    offset: int
    segment: Segment
    resumable: bool = True


class Chunk(msgspec.Struct, frozen=True):
    """Audio that follows the previous chunk without a gap: float32 ``[n]`` at the native rate."""

    samples: Samples
    marks: tuple[Mark, ...] = ()


class TurnSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How to speak one turn. ``voice`` is one of the engine's voices.

    ``streamed`` says that the text is still being written while it is spoken.
    """

    voice: str
    seed: int
    speed: float = 1.0
    mode: str | None = None
    instruct: str | None = None
    streamed: bool = False


class EngineMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine takes of its device's memory, in MiB.

    ``used_mb`` is what this engine holds, ``total_mb`` what the device has. Each turn that is
    spoken adds ``per_session_mb``, each voice in use ``per_voice_mb``.
    """

    used_mb: float
    total_mb: float
    per_session_mb: float
    per_voice_mb: float


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a loaded engine can do. ``native_rate`` is in Hz, read from the model itself.

    ``slots`` is how many turns it speaks at once without falling behind real time; like ``memory``
    it may change while the engine is loaded. ``streamed_limits`` replace ``limits`` for text that
    is written while it is spoken. ``gains`` are the linear gains, measured before, that bring
    voices to ``GAIN_LUFS``. ``capacity`` has names and values of what bounds ``slots``.
    ``synthetic`` says that the audio is a test signal and no voice.
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
        """The limits for a turn's text; ``streamed``: it is written while it is spoken."""
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
        """Speak ``text`` and discard the audio, so that the first turn is as fast as later ones."""
        ...

    def speak(self, spec: TurnSpec, segments: AsyncIterator[Segment]) -> AsyncGenerator[Chunk]:
        """Speak the segments as they arrive. Each segment's first chunk carries its mark.

        A segment's samples depend only on the model, ``spec``, its text and its index: another
        worker can continue the turn from any segment. (Joined segments count as one, with the
        index of the first.) Closing the generator, or cancelling the task that runs it, ends the
        work within one inference step and frees the slot.

        Raises:
            CannotSpeakError: The spec asks for what this model cannot do.
            EngineError: The work failed.
        """
        ...

    async def lost(self) -> str:
        """Wait until the loaded engine can no longer speak, its process having died say.

        Returns the reason. The engine's turns have failed by then: ``unload`` it, and load another.
        An engine that runs in this process is never lost.
        """
        ...

    async def unload(self) -> None:
        """Free all memory. Safe to call twice, and after a failed load."""
        ...
