"""The interface of an engine inside its process: one loop serves all turns.

worker's process                           engine's process
HostedEngine -- Open Push Consumed ... --> reader thread -> loop: commands, then one step
             <-- Audio Spoken Failed ---- writer thread <- emit
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from voicefleet.worker.engines.hosting.messages import Event
from voicefleet.worker.engines.protocol import EngineInfo, Segment, TurnSpec
from voicefleet.worker.voicepacks.voicepack import Voicepack

Emit: TypeAlias = Callable[[Event], None]
"""Sends an event to the worker. Any method of a core may call it; it never calls back."""


class Core(Protocol):
    """An engine's loop. All calls come from one thread, and none may wait for another turn.

    A turn is over once it was cancelled or ``Spoken`` or ``Failed`` was emitted for it; the core
    frees it then, and no further command for it comes. An exception from a turn's method fails that
    turn alone; an exception from ``step`` ends the engine. A step that takes longer than
    ``synthesis_timeout_s`` counts as hung.

    A core must limit how far it runs ahead of each listener: it stops making audio for a turn whose
    samples are not consumed. Nothing else limits the audio in flight.
    """

    @property
    def timings(self) -> Mapping[str, float]:
        """Milliseconds of each phase of load and warm-up."""
        ...

    @property
    def info(self) -> EngineInfo:
        """The loaded model's capabilities; ``Changed`` announces later changes."""
        ...

    def load(self) -> None:
        """Load the model. Raises ``EngineLoadError``."""
        ...

    def warm_up(self, text: str) -> None:
        """Do everything that is slow the first time; speak ``text`` without a listener."""
        ...

    def open(self, turn: int, spec: TurnSpec) -> None:
        """Begin a turn. Raises ``CannotSpeakError``, ``EngineError``."""
        ...

    def push(self, turn: int, segment: Segment) -> None:
        """Add the turn's next segment, whose audio begins with its mark."""
        ...

    def end(self, turn: int) -> None:
        """No further segment comes: emit ``Spoken`` after the last sample."""
        ...

    def consumed(self, turn: int, samples: int) -> None:
        """The listener's side has consumed ``samples`` samples in total."""
        ...

    def cancel(self, turn: int) -> None:
        """Free everything that the turn holds, at once. Ignore turns that are over or unknown."""
        ...

    def step(self) -> bool:
        """Take one step. Return ``False`` if there is nothing to do before the next command."""
        ...

    def close(self) -> None:
        """The process is about to end."""
        ...


CoreFactory: TypeAlias = Callable[[Voicepack, Any, Emit], Core]
"""Makes a core, not loaded yet, of a pack, its family's configuration and an ``Emit``."""
