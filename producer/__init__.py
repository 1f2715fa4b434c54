"""The orchestrator's side: client library and command line.

What is public here is imported when it is first used, so that the command line, which lies in this
package, starts without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from producer.client import VoiceFleet
    from producer.discovery import Capacity, Worker
    from producer.errors import (
        ForeignEntry,
        ServerRefused,
        ServerUnreachable,
        StreamGap,
        TurnEnded,
        TurnError,
        TurnExpired,
        TurnFailed,
        TurnRejected,
        UnknownModel,
        VoiceFleetError,
    )
    from producer.listener import Listener
    from producer.session import Session, SpeakOptions
    from producer.turn import StreamedTurn, Turn
    from producer.wav import WavWriter
    from schemas import End, EntryId, Frame, InvalidRequest, Start
    from wire.endpoint import RedisConfig

__all__ = [
    "Capacity",
    "End",
    "EntryId",
    "ForeignEntry",
    "Frame",
    "InvalidRequest",
    "Listener",
    "RedisConfig",
    "ServerRefused",
    "ServerUnreachable",
    "Session",
    "SpeakOptions",
    "Start",
    "StreamGap",
    "StreamedTurn",
    "Turn",
    "TurnEnded",
    "TurnError",
    "TurnExpired",
    "TurnFailed",
    "TurnRejected",
    "UnknownModel",
    "VoiceFleet",
    "VoiceFleetError",
    "WavWriter",
    "Worker",
]

_HOMES = (
    *("producer.client", "producer.discovery", "producer.errors", "producer.listener"),
    *("producer.session", "producer.turn", "producer.wav", "schemas", "wire.endpoint"),
)


def __getattr__(name: str) -> object:
    if name in __all__:
        for home in map(import_module, _HOMES):
            if hasattr(home, name):
                return globals().setdefault(name, getattr(home, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
