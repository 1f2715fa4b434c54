"""The wire protocol, docs/protocol.md, as typed structs.

Imports neither a Redis client nor any other package of ours.
"""

from voicefleet.schemas.audio import FRAME_MS, AudioEntry, End, EntryId, Frame, Reason, Start
from voicefleet.schemas.control import ControlValue, Level, StopThrough
from voicefleet.schemas.fields import FieldError
from voicefleet.schemas.keys import BACKLOG, GROUP, ORPHANS, Keys
from voicefleet.schemas.records import DeadLetter, ModelRecord, SessionRecord, WorkerRecord
from voicefleet.schemas.request import InvalidRequest, Request, TextPiece

__all__ = [
    "BACKLOG",
    "FRAME_MS",
    "GROUP",
    "ORPHANS",
    "AudioEntry",
    "ControlValue",
    "DeadLetter",
    "End",
    "EntryId",
    "FieldError",
    "Frame",
    "InvalidRequest",
    "Keys",
    "Level",
    "ModelRecord",
    "Reason",
    "Request",
    "SessionRecord",
    "Start",
    "StopThrough",
    "TextPiece",
    "WorkerRecord",
]
