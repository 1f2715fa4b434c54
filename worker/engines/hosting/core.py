"""What an engine is inside its own process: one loop for all turns.

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
"""Says something to the worker. May be called from any method of a core; does not call back."""


class Core(Protocol):
    """An engine's work. All calls come from one thread, and none may wait for another turn.

    A turn is over when it was cancelled and when ``Spoken`` or ``Failed`` was said of it; the core
    frees it then, and no command for it comes any more. What a method of one turn raises fails
    that turn alone; what ``step`` raises takes the whole engine down. A step that takes longer than
    ``synthesis_timeout_s`` counts as hung.

    A core is no more than a bounded time ahead of each listener: of a turn whose samples are not
    consumed it makes no more. That is all that bounds the audio on its way.
    """

    @property
    def timings(self) -> Mapping[str, float]:
        """Milliseconds by phase, of load and warm-up."""
        ...

    @property
    def info(self) -> EngineInfo:
        """What the loaded model can do; later changes are told by ``Changed``."""
        ...

    def load(self) -> None:
        """Bring the model into memory. Raises ``EngineLoadError``."""
        ...

    def warm_up(self, text: str) -> None:
        """Do all that is slow the first time; speak ``text`` to nobody."""
        ...

    def open(self, turn: int, spec: TurnSpec) -> None:
        """A turn begins. Raises ``CannotSpeakError``, ``EngineError``."""
        ...

    def push(self, turn: int, segment: Segment) -> None:
        """The turn's next segment, which its audio opens with a mark."""
        ...

    def end(self, turn: int) -> None:
        """No further segment comes: say ``Spoken`` after the last sample."""
        ...

    def consumed(self, turn: int, samples: int) -> None:
        """So many samples have been taken by the listener's side, in all."""
        ...

    def cancel(self, turn: int) -> None:
        """Free all that the turn holds, at once. One that is over or unknown is no error."""
        ...

    def step(self) -> bool:
        """One inner step of the work. ``False``: there is nothing to do until the next command."""
        ...

    def close(self) -> None:
        """The process is about to end."""
        ...


CoreFactory: TypeAlias = Callable[[Voicepack, Any, Emit], Core]
"""Makes a core, not loaded yet, from a pack, its family's configuration, and where events go."""
