"""The orchestrator's side: client library and command line."""

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
