"""voicefleet: a fleet of workers that turn text into speech in real time, over Redis Streams.

    from voicefleet import VoiceFleet

The client's public names are here, each imported when it is first used: the worker's processes
and the command line start without the client. The packages beside this file are links to the
folders of the repository; an installed voicefleet has them as its own.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from voicefleet.producer.client import VoiceFleet
    from voicefleet.producer.discovery import Capacity, Worker
    from voicefleet.producer.errors import (
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
    from voicefleet.producer.reading.listener import Listener
    from voicefleet.producer.session import Session, SpeakOptions
    from voicefleet.producer.turn import StreamedTurn, Turn
    from voicefleet.producer.wav import WavWriter
    from voicefleet.schemas import End, EntryId, Frame, InvalidRequest, Start
    from voicefleet.wire.endpoint import RedisConfig

__version__ = "0.1.0"

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
    *("producer.client", "producer.discovery", "producer.errors", "producer.reading.listener"),
    *("producer.session", "producer.turn", "producer.wav", "schemas", "wire.endpoint"),
)


def __getattr__(name: str) -> object:
    if name in __all__:
        for home in (import_module(f"{__name__}.{home}") for home in _HOMES):
            if hasattr(home, name):
                return globals().setdefault(name, getattr(home, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
