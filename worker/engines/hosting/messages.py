"""The messages between a worker and its engine's process.

MessagePack over a stream socket; each message follows its length (4 bytes, little-endian). Without
pickle, neither side can make the other run code.
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
"""The longest valid message in bytes: 11 minutes of audio."""


class ProtocolError(Exception):
    """The peer sent something that is not a valid message."""


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """One message; its class is its tag."""


# To the engine's process.


class Start(Message, frozen=True):
    """Load a voicepack with the core named ``core`` (see ``hosting.cores``)."""

    core: str
    directory: str
    config: dict[str, Any]


class WarmUp(Message, frozen=True):
    """Speak ``text`` without a listener; answered by ``Warm``."""

    text: str


class Open(Message, frozen=True):
    """A turn begins. The worker numbers its turns and never reuses a number."""

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
    """The listener's side has consumed ``samples`` samples of the turn in total."""

    turn: int
    samples: int


class Cancel(Message, frozen=True):
    """The turn is over; no further message about it is expected."""

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
    """Warm-up is complete. ``timings`` in ms by phase, the load's included."""

    info: EngineInfo
    timings: dict[str, float]


class Changed(Message, frozen=True):
    """The engine's slot count or memory use changed."""

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
        """Whether its bytes are whole samples and its marks lie within them."""
        count, odd_bytes = divmod(len(self.samples), 4)
        return not odd_bytes and all(0 <= mark.offset <= count for mark in self.marks)

    @property
    def array(self) -> Samples:
        """The samples, float32 ``[n]``, read-only and not copied."""
        return np.frombuffer(self.samples, "<f4")


class Spoken(Message, frozen=True):
    """All of the turn's audio has been sent; the turn is over."""

    turn: int


class Failed(Message, frozen=True):
    """The turn failed: it may be retried (``retry``) or can never be spoken (``refuse``)."""

    turn: int
    kind: Literal["retry", "refuse"]
    message: str

    @property
    def error(self) -> CannotSpeakError | EngineError:
        """The exception for the worker to raise."""
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
    """The engine failed as a whole; its process ends."""

    message: str


Event: TypeAlias = Audio | Spoken | Failed | Changed
"""What a core may emit."""

Report: TypeAlias = Event | Loaded | Warm | Alive | Logged | Fatal
"""Everything that comes from the engine's process."""

_encoder = msgspec.msgpack.Encoder()


def pack(message: Message) -> bytes:
    """Encode a message for the socket, length included."""
    buffer = bytearray(_LENGTH.size)
    _encoder.encode_into(message, buffer, _LENGTH.size)
    _LENGTH.pack_into(buffer, 0, len(buffer) - _LENGTH.size)
    return bytes(buffer)


class Unpacker:
    """Decodes messages from the bytes of a socket, however they are split.

    Args:
        kind: The union of the messages that may come.
    """

    def __init__(self, kind: object) -> None:
        self._decoder = msgspec.msgpack.Decoder[Any](kind)  # pyright: ignore[reportArgumentType]
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """Add received bytes; return the messages that are complete.

        Raises:
            ProtocolError: The bytes are not a valid message.
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
            # Decoded in place, so that audio is copied only once, out of this buffer.
            with memoryview(buffer) as view, view[at + _LENGTH.size : end] as body:
                try:
                    messages.append(self._decoder.decode(body))
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    # Without the content: it may be text to be spoken.
                    raise ProtocolError(f"no message: {type(error).__name__}") from None
            at = end
        del buffer[:at]
        return messages
