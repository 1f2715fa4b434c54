"""Input from sockets: a server's replies, an engine process's reports."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, Final, cast

import msgspec
import structlog

from verify.fuzz.mutators import NUMBERS, spoil, stray
from verify.fuzz.target import Target, ensure
from voicefleet.wire.link import Link, LinkClosedError, Reply
from voicefleet.worker.engines.hosting import messages
from voicefleet.worker.engines.hosting.messages import (
    LARGEST,
    Alive,
    Audio,
    Changed,
    Failed,
    Fatal,
    Loaded,
    Logged,
    ProtocolError,
    Spoken,
    Unpacker,
    Warm,
)
from voicefleet.worker.engines.hosting.process import EngineProcess
from voicefleet.worker.engines.hosting.remote import RemoteCore, RemoteTurn
from voicefleet.worker.engines.protocol import (
    EngineError,
    EngineInfo,
    EngineMemory,
    Mark,
    Segment,
    SegmentLimits,
    TurnSpec,
)

REPLIES: Final = [
    b"+OK\r\n:1\r\n$5\r\nhello\r\n*2\r\n$1\r\na\r\n:2\r\n",
    b"%2\r\n$1\r\na\r\n+x\r\n$1\r\nb\r\n*1\r\n_\r\n-ERR no\r\n",
    b">2\r\n$10\r\ninvalidate\r\n*1\r\n$3\r\nkey\r\n",
    b">2\r\n$10\r\ninvalidate\r\n_\r\n,3.25\r\n#t\r\n(12345678901234567890\r\n=7\r\ntxt:abc\r\n",
    b"~2\r\n:1\r\n:2\r\n|1\r\n+a\r\n+b\r\n!5\r\nERR x\r\n$-1\r\n*-1\r\n",
    b"*1\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$4\r\ntext\r\n$2\r\nhi\r\n",
]
RESP_WORDS: Final = [
    *(
        b"\r\n",
        b"*2147483647\r\n",
        b"*4294967296\r\n",
        b"%2147483647\r\n",
        b"$9223372036854775807\r\n",
    ),
    *(
        b"*1048576\r\n",
        b"$536870912\r\n",
        b"$536870913\r\n",
        b"*-2\r\n",
        b"$-2\r\n",
        b"*1\r\n" * 12,
    ),
    *(b"%1\r\n*0\r\n+x\r\n", b"%1\r\n%0\r\n+x\r\n", b"~1\r\n*0\r\n", b">0\r\n", b">1\r\n:1\r\n"),
    *(b"$?\r\n", b"*?\r\n", b".\r\n", b";0\r\n", b",nan\r\n", b",inf\r\n", b"#x\r\n", b"(x\r\n"),
    *(f":{number}\r\n".encode() for number in NUMBERS),
]


class _Transport(asyncio.Transport):
    """A transport that discards data and records that it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: Any) -> None:
        pass

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def resp(_: Path) -> Target:
    """Three batches in flight: each is answered, or the link closes."""

    def draw(rng: Random) -> list[bytes]:
        data = b"".join(
            spoil(rng, REPLIES, RESP_WORDS, largest=2**16) for _ in range(rng.choice((1, 2, 3)))
        )
        if rng.random() < 0.2:
            data = rng.choice(RESP_WORDS) + data
        cuts = sorted(rng.randint(0, len(data)) for _ in range(rng.choice((0, 1, 5))))
        return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    def feed(pieces: list[bytes]) -> None:
        answers: list[list[Reply] | LinkClosedError] = []
        pushes: list[list[Reply]] = []
        link = Link(pushes.append)
        transport = _Transport()
        link.connection_made(transport)
        for count in (1, 2, 3):
            link.submit([["PING"]] * count, answers.append)
        for piece in pieces:
            if transport.closed:
                break
            link.data_received(piece)
        link.connection_lost(None)
        ensure(len(answers) == 3, "a batch has no answer, or two")

    return Target(draw, feed)


INFO: Final = EngineInfo(
    native_rate=24000,
    slots=4,
    voices=("a", "b"),
    default_voice="a",
    languages=("en",),
    modes=("sft",),
    limits=SegmentLimits(80, 240),
    memory=EngineMemory(used_mb=1.0, total_mb=2.0, per_session_mb=0.1, per_voice_mb=0.1),
    gains={"a": 1.25},
    capacity=(("rtf", "0.1"),),
)
REPORTS: Final[list[messages.Message]] = [
    Loaded(INFO, {"load": 12.5}),
    Warm(INFO, {}),
    Changed(INFO),
    Audio(1, b"\0" * 64, (Mark(0, Segment(0, "Hello.", 0, 6)),)),
    Audio(1, b"\0" * 4000),
    Spoken(2),
    Failed(3, "retry", "no"),
    Failed(2, "refuse", "no"),
    Alive(),
    Logged("info", "x", {"a": 1}),
    Fatal("gone"),
]
_LENGTHS: Final = [n.to_bytes(4, "little") for n in (0, 1, LARGEST, LARGEST + 1, 2**31, 2**32 - 1)]


def engine_bytes(_: Path) -> Target:
    """Any bytes from the process are decoded as messages or rejected."""
    seeds = [
        b"".join(messages.pack(report) for report in REPORTS[at:]) for at in range(len(REPORTS))
    ]

    def draw(rng: Random) -> list[bytes]:
        if rng.random() < 0.5:
            data = spoil(rng, seeds, _LENGTHS)
        else:  # behind a length that is right
            bodies = [messages.pack(report)[4:] for report in REPORTS]
            deep = [b"\x91" * 5000, b"\x81\xa1a" * 5000, b"\xc1", b"\xd8", b"\xdd\xff\xff\xff\xff"]
            body = spoil(rng, bodies, deep)
            data = len(body).to_bytes(4, "little") + body
        cut = rng.randint(0, len(data))
        return [data[:cut], data[cut:]]

    def feed(pieces: list[bytes]) -> None:
        unpacker = Unpacker(messages.Report)
        for piece in pieces:
            for report in unpacker.feed(piece):
                ensure(isinstance(report, messages.Message), "no message")

    return Target(draw, feed, (ProtocolError,))


def engine_reports(_: Path) -> Target:
    """Well-formed messages without sense, up to their consumer."""
    plain = [msgspec.to_builtins(report, builtin_types=(bytes,)) for report in REPORTS]
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())

    def draw(rng: Random) -> bytes:
        out = b""
        for _ in range(rng.choice((1, 2, 5))):
            body = _spoil_values(rng, rng.choice(plain))
            packed = msgspec.msgpack.encode(body)
            out += len(packed).to_bytes(4, "little") + packed
        return out

    def feed(data: bytes) -> None:
        asyncio.run(_taken(data))

    return Target(draw, feed)


def _spoil_values(rng: Random, node: Any) -> Any:
    """A node of the same type with another value, so that most messages stay well formed."""
    match node:
        case bool() | None:
            return rng.choice((True, False, None))
        case int():
            return rng.choice((node, node, 0, -1, 1, 2**31, 2**63 - 1, -(2**63)))
        case float():
            return rng.choice((node, 0.0, -1.0, float("nan"), float("inf"), 1e308))
        case bytes():
            return rng.choice((node, b"", b"\0", b"\xff" * 7, b"\xff" * 40, b"\0\0\xc0\x7f" * 10))
        case str() if node[:1].isupper():
            return node  # a tag
        case str():
            return rng.choice((node, node, "", "event", "level", "x" * 9999, "\ud7ff\0"))
        case dict():
            items = cast(dict[Any, Any], node).items()
            changed = {_spoil_values(rng, k): _spoil_values(rng, v) for k, v in items}
            if rng.random() < 0.3:
                changed[rng.choice(("event", "self", "level", "exc_info", "stack_info", ""))] = (
                    rng.choice((1, "x", [1], {"a": None}))
                )
            return changed
        case list() | tuple():
            return [_spoil_values(rng, item) for item in cast(Sequence[Any], node)]
        case _:
            return stray(rng)


class _Child(EngineProcess):
    """A process that was never started: nothing reaches it."""

    def kill(self) -> None:
        pass


async def _taken(data: bytes) -> None:
    core: Any = RemoteCore("m", 5.0)
    child = core._process = _Child(core._on_report, core._mark_lost)
    turns: list[RemoteTurn] = [core.open(TurnSpec(voice="a", seed=0)) for _ in range(3)]
    child.data_received(data)
    child.connection_lost(None)
    for turn in turns:
        await _consume(turn)
    ensure(core._reason is not None, "a lost process without a reason")


async def _consume(turn: RemoteTurn) -> None:
    """Read it as ``HostedEngine.speak`` does."""
    try:
        while (audio := await turn.next()) is not None:
            samples = audio.array
            for mark in audio.marks:
                ensure(0 <= mark.offset <= len(samples), "a mark beside its samples")
    except EngineError:
        pass
