"""What a client can be told to do in one session: asks, and the moves of a scene."""

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
    """A request to come. ``utterance`` is empty where it has neither text nor a text stream.

    ``deadline_in_ms`` counts from the moment it is added. ``odd`` are fields that replace those
    of the utterance.
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


class Together(msgspec.Struct, frozen=True):
    """Add a request in one pipeline with those of the orchestrator's other sessions."""

    ask: Ask


class Again(msgspec.Struct, frozen=True):
    """Add a request that was added before, as it was."""

    request: str


class Hear(msgspec.Struct, frozen=True):
    """Wait until so many frames of a request were heard, or its end."""

    request: str
    frames: int


class Rest(msgspec.Struct, frozen=True):
    """Let time pass."""

    seconds: float


class ControlValue(msgspec.Struct, frozen=True):
    """Set the session's control key. With an empty value: delete it."""

    value: str


class Until(msgspec.Struct, frozen=True):
    """Wait for the ends of requests."""

    requests: tuple[str, ...]


Move: TypeAlias = Add | Together | Again | Hear | Rest | ControlValue | Until


class Scene(msgspec.Struct, frozen=True):
    """A few moves in one session. All requests that it adds end before the next scene."""

    kind: Kind
    moves: tuple[Move, ...]

    @property
    def asks(self) -> tuple[Ask, ...]:
        """The requests that it adds, in order."""
        found: list[Ask] = []
        for move in self.moves:
            if isinstance(move, Add):
                found += move.asks
            elif isinstance(move, Together):
                found.append(move.ask)
        return tuple(found)
