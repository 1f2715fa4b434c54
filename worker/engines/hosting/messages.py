"""What a worker and its engine's process say to each other.

MessagePack over a stream socket, each message behind its length (4 bytes, little-endian). No
pickle: neither side can make the other run anything.
"""

import struct
from typing import Any, Final, Literal, Self, TypeAlias

import msgspec
import numpy as np

from voicefleet.worker.engines.protocol import (
    CannotSpeakError,
    EngineError,
    EngineInfo,
    Mark,
    Samples,
    Segment,
    TurnSpec,
)

_LENGTH: Final = struct.Struct("<I")
LARGEST: Final = 64 * 2**20
"""No message is longer, in bytes: 11 minutes of audio. What claims to be is no message."""


class ProtocolError(Exception):
    """What came over the socket is no message."""


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """One message; its class is its tag."""


# To the engine's process.


class Start(Message, frozen=True):
    """Load a voicepack with the core that ``core`` names (``hosting.cores``)."""

    core: str
    directory: str
    config: dict[str, Any]


class WarmUp(Message, frozen=True):
    """Speak ``text`` to nobody; answered by ``Warm``."""

    text: str


class Open(Message, frozen=True):
    """A turn begins. Turns are numbered by the worker; no number comes twice."""

    turn: int
    spec: TurnSpec


class Push(Message, frozen=True):
    """The turn's next segment."""

    turn: int
    segment: Segment


class End(Message, frozen=True):
    """No further segment comes."""

    turn: int


class Consumed(Message, frozen=True):
    """The listener's side has taken so many samples of the turn, in all."""

    turn: int
    samples: int


class Cancel(Message, frozen=True):
    """The turn is over; nothing more is said about it."""

    turn: int


class Stop(Message, frozen=True):
    """Exit."""


Command: TypeAlias = Start | WarmUp | Open | Push | End | Consumed | Cancel | Stop


# From the engine's process.


class Loaded(Message, frozen=True):
    """The model is in memory. ``timings`` in ms by phase."""

    info: EngineInfo
    timings: dict[str, float]


class Warm(Message, frozen=True):
    """It is warm. ``timings`` in ms by phase, those of the load included."""

    info: EngineInfo
    timings: dict[str, float]


class Changed(Message, frozen=True):
    """The engine's slots or memory are others now."""

    info: EngineInfo


class Audio(Message, frozen=True):
    """The turn's next samples: float32, little-endian, mono, at the native rate."""

    turn: int
    samples: bytes
    marks: tuple[Mark, ...] = ()

    @classmethod
    def of(cls, turn: int, samples: Samples, marks: tuple[Mark, ...] = ()) -> Self:
        """A message of float32 ``[n]``."""
        return cls(turn, np.ascontiguousarray(samples, "<f4").tobytes(), marks)

    @property
    def is_sound(self) -> bool:
        """Whether its bytes are whole samples, and its marks lie among them."""
        count, rest = divmod(len(self.samples), 4)
        return not rest and all(0 <= mark.offset <= count for mark in self.marks)

    @property
    def array(self) -> Samples:
        """The samples, float32 ``[n]``, read-only and not copied."""
        return np.frombuffer(self.samples, "<f4")


class Spoken(Message, frozen=True):
    """All of the turn's audio has been sent; the turn is over."""

    turn: int


class Failed(Message, frozen=True):
    """The turn is over: it may be tried again (``retry``), or never can be spoken (``refuse``)."""

    turn: int
    kind: Literal["retry", "refuse"]
    message: str

    @property
    def error(self) -> CannotSpeakError | EngineError:
        """What it is to the worker."""
        refused = self.kind == "refuse"
        return CannotSpeakError(self.message) if refused else EngineError(self.message)


class Alive(Message, frozen=True):
    """The engine's loop turns."""


class Logged(Message, frozen=True):
    """A line for the worker's log."""

    level: str
    event: str
    fields: dict[str, Any]


class Fatal(Message, frozen=True):
    """The engine gives up; the process ends."""

    message: str


Event: TypeAlias = Audio | Spoken | Failed | Changed
"""What an engine's core says by itself."""

Report: TypeAlias = Event | Loaded | Warm | Alive | Logged | Fatal
"""All that comes from the engine's process."""

_encoder = msgspec.msgpack.Encoder()


def pack(message: Message) -> bytes:
    """The message as it goes over the socket."""
    buffer = bytearray(_LENGTH.size)
    _encoder.encode_into(message, buffer, _LENGTH.size)
    _LENGTH.pack_into(buffer, 0, len(buffer) - _LENGTH.size)
    return bytes(buffer)


class Unpacker:
    """Takes what comes over the socket, in whatever pieces, and gives out messages.

    Args:
        kind: The union of the messages that may come.
    """

    def __init__(self, kind: object) -> None:
        self._decoder = msgspec.msgpack.Decoder[Any](kind)  # pyright: ignore[reportArgumentType]
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The messages that are complete now.

        Raises:
            ProtocolError: This is none of them.
        """
        buffer, messages, at = self._buffer, list[Any](), 0
        buffer += data
        while len(buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if length > LARGEST:
                raise ProtocolError(f"a message of {length} bytes")
            end = at + _LENGTH.size + length
            if end > len(buffer):
                break
            # Decoded where it lies: audio is copied once, out of this buffer.
            with memoryview(buffer) as view, view[at + _LENGTH.size : end] as body:
                try:
                    messages.append(self._decoder.decode(body))
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    # Never what was said: it may be text that is spoken.
                    raise ProtocolError(f"no message: {type(error).__name__}") from None
            at = end
        del buffer[:at]
        return messages
