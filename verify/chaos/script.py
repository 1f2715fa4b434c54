"""What a client does in one session: requests to add, and the steps of a scene."""

from typing import Literal, TypeAlias

import msgspec

Kind: TypeAlias = Literal[
    "plain",
    "streamed",
    "small_lead",
    "large_lead",
    "no_lead",
    "interrupt",
    "interrupt_twice",
    "pause",
    "stop",
    "stop_request",
    "duplicates",
    "deadline",
    "burst",
    "together",
    "invalid",
    "unknown_voice",
    "saboteur",
]
"""The kinds of scenes."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A request to add. ``utterance`` is empty for one with neither text nor a text stream.

    ``deadline_in_ms`` counts from the moment it is added. ``odd`` replaces fields of
    the utterance.
    """

    request: str
    utterance: str
    lead_ms: int | None = None
    deadline_in_ms: int | None = None
    interrupt: bool = False
    odd: dict[str, str] = {}
    invalid: bool = False


class Add(msgspec.Struct, frozen=True):
    """Add requests, in one pipeline."""

    asks: tuple[Ask, ...]


class AddTogether(msgspec.Struct, frozen=True):
    """Add a request in one pipeline with those of the orchestrator's other sessions."""

    ask: Ask


class AddAgain(msgspec.Struct, frozen=True):
    """Add a request that was added before, as it was."""

    request: str


class WaitForFrames(msgspec.Struct, frozen=True):
    """Wait until so many frames of a request were read, or its end."""

    request: str
    frames: int


class Sleep(msgspec.Struct, frozen=True):
    """Let time pass."""

    seconds: float


class SetControl(msgspec.Struct, frozen=True):
    """Set the session's control key. With an empty value: delete it."""

    value: str


class WaitForEnds(msgspec.Struct, frozen=True):
    """Wait for the ends of requests."""

    requests: tuple[str, ...]


Step: TypeAlias = Add | AddTogether | AddAgain | WaitForFrames | Sleep | SetControl | WaitForEnds


class Scene(msgspec.Struct, frozen=True):
    """A few steps in one session. All requests that it adds end before the next scene."""

    kind: Kind
    steps: tuple[Step, ...]

    @property
    def asks(self) -> tuple[Ask, ...]:
        """The requests that it adds, in order."""
        found: list[Ask] = []
        for step in self.steps:
            if isinstance(step, Add):
                found += step.asks
            elif isinstance(step, AddTogether):
                found.append(step.ask)
        return tuple(found)
