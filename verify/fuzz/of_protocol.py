"""The parsers of the wire protocol: requests, text, control, audio, records, leases."""

import json
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

from verify.fuzz.mutators import BROKEN_UTF8, NUMBERS, spoil, spoil_fields, spoil_tree
from verify.fuzz.target import Target, ensure
from voicefleet.schemas import audio, records
from voicefleet.schemas import control as wishes
from voicefleet.schemas.audio import End, Frame, Start
from voicefleet.schemas.fields import SESSION, FieldError
from voicefleet.schemas.records import ModelRecord, SessionRecord, WorkerRecord
from voicefleet.schemas.request import MAX_TEXT, InvalidRequest, Request, TextPiece
from voicefleet.worker.audio.resume import resume_point
from voicefleet.worker.control.session_watch import SessionWatch
from voicefleet.worker.store.lease_states import Claim
from voicefleet.worker.store.queues import Delivery
from voicefleet.worker.synthesis.turn import Trail

Fields = dict[bytes, bytes]

SECRET: Final = "open sesame"
"""Part of every text here; no error may contain it."""

REQUESTS: Final[list[Fields]] = [
    {b"session": b"s1", b"text": f"Say {SECRET}.".encode()},
    {b"session": b"s1", b"request": b"r1", b"stream": b"1"},
    {
        **{b"session": b"a:b", b"text": SECRET.encode(), b"voice": b"joe", b"mode": b"sft"},
        **{b"instruct": SECRET.encode(), b"speed": b"1.25", b"seed": b"7", b"lead_ms": b"0"},
        **{b"sample_rate": b"24000", b"deadline_ms": b"1700000000000", b"interrupt": b"1"},
        b"traceparent": b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    },
]
WORDS: Final = (
    *(b"session", b"text", b"request", b"stream", b"1", b"0", b"r" * 128, b"r" * 129, b"a/b"),
    *(b"{s}", b"x" * (MAX_TEXT + 1), "é".encode() * MAX_TEXT, b"48000", b"8000", b"44100"),
)


def request(_: Path) -> Target:
    """The fields of a request."""

    def feed(fields: Fields) -> None:
        try:
            read = Request.decode("1700000000000-0", fields)
        except InvalidRequest as error:
            others = b"".join(v for k, v in fields.items() if k not in (b"text", b"instruct"))
            spoken_alone = SECRET.encode()[:4] not in others
            ensure(not (spoken_alone and SECRET in str(error)), "an error quotes the text")
            ensure(len(str(error)) < 500, "an error is as long as the input")
            ensure(error.session is None or bool(SESSION.fullmatch(error.session)), "session")
            ensure(bool(SESSION.fullmatch(error.request)), "request")
            raise
        again = Request.decode("1-0", {k.encode(): v for k, v in read.encode().items()})
        ensure(again == read, "a request is another one after encoding")
        ensure(0 <= read.seed_or_derived < 2**63, "seed")

    return Target(partial(_fields, REQUESTS, WORDS), feed, (InvalidRequest,))


PIECES: Final[list[Fields]] = [
    {b"text": f"The first words, {SECRET} ".encode()},
    {b"text": b"of a sentence.", b"flush": b"1"},
    {b"end": b"1"},
]


def text_piece(_: Path) -> Target:
    """The fields of an entry of a text stream."""

    def feed(fields: Fields) -> None:
        piece = TextPiece.decode(fields)
        ensure(len(piece.text) <= MAX_TEXT, "text")
        ensure(TextPiece.decode(_bytes(piece.encode())) == piece, "a piece after encoding")

    return Target(partial(_fields, PIECES, WORDS), feed, (FieldError,))


def control(_: Path) -> Target:
    """The value of a control key."""
    seeds = [b"pause", b"resume", b"stop", b"stop:r7", b"STOP", b" pause "]

    def draw(rng: Random) -> bytes | None:
        return None if rng.random() < 0.01 else spoil(rng, seeds, [b"stop:", b":", b"r" * 129])

    def feed(raw: bytes | None) -> None:
        try:
            wish = wishes.decode(raw)
        except FieldError as error:
            ensure(len(str(error)) < 200, "an error is as long as the input")
            raise
        ensure(wishes.decode(wishes.encode(wish).encode()) == wish, "a wish after encoding")

    return Target(draw, feed, (FieldError,))


def audio_entry(_: Path) -> Target:
    """The fields of an audio stream's entry."""
    start = {b"event": b"start", b"request": b"r", b"model": b"m", b"voice": b"v", b"worker": b"w"}
    seeds: list[Fields] = [
        start | {b"sample_rate": b"48000", b"frame_ms": b"20", b"format": b"s16le", b"t": b"1"},
        {b"pcm": b"\0\1" * 960, b"text": b"Hello."},
        {b"event": b"end", b"request": b"r", b"reason": b"completed", b"frames": b"7", b"t": b"1"},
        {b"event": b"end", b"reason": b"failed", b"frames": b"0", b"error": b"text_timeout"},
    ]

    def draw(rng: Random) -> tuple[bytes, Fields]:
        ids = [b"1-0", b"1-1", b"18446744073709551615-18446744073709551615"]
        entry = spoil(rng, ids) if rng.random() < 0.3 else rng.choice(ids)
        return entry, _fields(seeds, (b"start", b"end", b"event", *_NUMBERS), rng)

    def feed(drawn: tuple[bytes, Fields]) -> None:
        entry = audio.decode(*drawn)
        known = isinstance(entry, Start | Frame | End)  # pyright: ignore[reportUnnecessaryIsInstance]
        ensure(known, "an entry is none of three")
        ensure(min(entry.id.turn, entry.id.n) >= 0, "id")

    return Target(draw, feed, (FieldError,))


_NUMBERS: Final = tuple(number.encode() for number in NUMBERS)


def _record(kind: Any, example: Any) -> Target:
    seeds = [_bytes(records.encode(example))]

    def feed(fields: Fields) -> None:
        try:
            record: Any = records.decode(kind, fields)
        except FieldError as error:
            ensure(len(str(error)) < 300, "an error is as long as the input")
            raise
        records.decode(kind, _bytes(records.encode(record)))

    return Target(partial(_fields, seeds, (*_NUMBERS, b",", b",,a,", b"1")), feed, (FieldError,))


def worker_record(_: Path) -> Target:
    """A worker's record."""
    made = WorkerRecord(
        state="ready",
        host="h",
        pid=7,
        version="0.1",
        device="cpu",
        models=("a", "b"),
        slots_total=16,
        slots_free=3,
        sessions=13,
        first_audio_p50_ms=3.25,
        rtf=0.1,
        vram_used_mb=100,
        faults="a: b; c",
    )
    return _record(WorkerRecord, made)


def model_record(_: Path) -> Target:
    """A model's record."""
    made = ModelRecord(
        family="tone",
        version="1",
        languages=("en",),
        voices=("a", "b"),
        default_voice="a",
        modes=(),
        capabilities=("streaming",),
        native_rate=22050,
        sample_rates=(8000, 48000),
        synthetic=True,
    )
    return _record(ModelRecord, made)


def session_record(_: Path) -> Target:
    """A session's record."""
    made = SessionRecord(state="speaking", turn=3, request="r", frames=7, first_audio_ms=12.5)
    return _record(SessionRecord, made)


def lease(_: Path) -> Target:
    """A lease as its reader uses it: any hash gives a directive."""
    seeds: list[Fields] = [
        {
            **{b"active": b"1", b"epoch": b"1763836229000000", b"turn": b"3", b"request": b"r3"},
            **{b"entry": b"1763836229000-0", b"model": b"tone-test", b"owner": b"w1"},
            **{b"attempts": b"1", b"progress": b"7", b"w:1763836229001-0:tone-test": b".r4"},
            b"w:1763836229002-1:tone-test": b"!r5",
        }
    ]
    words = (b"w:", b"w:1-1:m", b"w:a-b:m", b"w:1-1-1:m", b"!", *_NUMBERS)

    def feed(fields: Fields) -> None:
        watch = SessionWatch(Delivery("tone-test", "1763836229000-0", {}, Claim.FRESH), "s", "r3")
        watch.epoch = "1763836229000000"
        watch._on_lease(fields)  # pyright: ignore[reportPrivateUsage]
        watch.directive()
        waiting: list[str | None] = [w.request for w in watch.lease.waiters]
        ensure(None not in waiting, "waiters")

    def draw(rng: Random) -> Fields:
        fields = _fields(seeds, words, rng)
        if rng.random() < 0.2:
            fields[b"epoch"] = rng.choice(_NUMBERS)
        return fields

    return Target(draw, feed)


def trail(_: Path) -> Target:
    """Resume points as a worker takes them from the lease."""
    seeds = [b'[{"segment":0,"char":0,"native":0},{"segment":1,"char":57,"native":44100}]', b""]
    tree: Any = [
        {"segment": 0, "char": 0, "native": 0},
        {"segment": 1, "char": 57, "native": 44100},
    ]

    def draw(rng: Random) -> bytes:
        if rng.random() < 0.5:
            return spoil(rng, seeds, (b'"native"', b"{", b"[", b"null", *_NUMBERS))
        return json.dumps(spoil_tree(rng, tree)).encode("utf-8", "replace")

    def feed(raw: bytes) -> None:
        points = Trail.decode(raw)
        for n in (1, 100, 10_000):
            point = resume_point(points, n, 22050)
            ensure(point is None or point.native <= n * 441, "a point after the frame")
            ensure(point is None or min(point.segment, point.char, point.native) >= 0, "negative")
        Trail(points).note(())

    return Target(draw, feed)


def _fields(seeds: list[Fields], words: tuple[bytes, ...], rng: Random) -> Fields:
    return spoil_fields(rng, seeds, (*words, *BROKEN_UTF8))


def _bytes(fields: Any) -> Fields:
    return {
        name.encode(): value if isinstance(value, bytes) else value.encode()
        for name, value in fields.items()
    }
