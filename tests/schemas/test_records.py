"""Records against the flat hashes that HGETALL returns."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicefleet.schemas import DeadLetter, FieldError, ModelRecord, SessionRecord, WorkerRecord
from voicefleet.schemas.records import decode, encode

names = st.from_regex(r"[A-Za-z0-9_.@:\-]{1,20}", fullmatch=True)
lists = st.lists(names, max_size=4).map(tuple)
counts = st.integers(0, 2**53)
figures = st.none() | st.floats(0, 1e6)
sizes = st.none() | counts

sessions = st.builds(
    SessionRecord, state=st.sampled_from(["queued", "speaking", "paused", "idle"]), turn=counts,
    request=names, model=names, voice=names, worker=names, frames=counts, first_audio_ms=figures,
    updated_ms=counts,
)  # fmt: skip
workers = st.builds(
    WorkerRecord, state=st.sampled_from(["starting", "ready", "draining"]), host=names, pid=counts,
    version=names, device=names, models=lists, slots_total=counts, slots_free=counts,
    sessions=counts, started_ms=counts, beat_ms=counts, first_audio_p50_ms=figures,
    first_audio_p95_ms=figures, rtf=figures, vram_used_mb=sizes, vram_total_mb=sizes,
    session_mb=figures, voice_mb=figures,
    faults=st.none() | st.just("tone-test: no sign of life for 5 s, at all; reloading"),
)  # fmt: skip
models = st.builds(
    ModelRecord, family=names, version=names, languages=lists, voices=lists, default_voice=names,
    modes=lists, capabilities=lists, native_rate=counts, sample_rates=st.lists(counts).map(tuple),
    synthetic=st.booleans(),
)  # fmt: skip
letters = st.builds(
    DeadLetter, model=names, entry=names, session=st.none() | names, request=names,
    reason=st.sampled_from(["rejected", "failed"]), error=names, worker=names,
)  # fmt: skip

WORKER = WorkerRecord(
    state="ready",
    host="host",
    pid=7,
    version="0.1.0",
    device="cpu",
    models=("tone-test", "piper-en-joe"),
    slots_total=16,
    slots_free=3,
    sessions=13,
    started_ms=1700000000000,
    beat_ms=1700000001000,
    rtf=0.05,
)


def raw(hash_fields: dict[str, str]) -> dict[bytes, bytes]:
    return {name.encode(): value.encode() for name, value in hash_fields.items()}


@given(sessions | workers | models | letters)
def test_a_record_is_read_back(
    record: SessionRecord | WorkerRecord | ModelRecord | DeadLetter,
) -> None:
    encoded = encode(record)
    again = decode(type(record), raw(encoded))
    for name in record.__struct_fields__:
        written, read = getattr(record, name), getattr(again, name)
        if isinstance(written, float):
            # Four digits are enough for people to read.
            assert math.isclose(written, read, rel_tol=1e-3, abs_tol=1e-3)
        else:
            assert read == written


def test_the_hash_of_a_worker() -> None:
    assert encode(WORKER) == {
        "state": "ready",
        "host": "host",
        "pid": "7",
        "version": "0.1.0",
        "device": "cpu",
        "models": "tone-test,piper-en-joe",
        "slots_total": "16",
        "slots_free": "3",
        "sessions": "13",
        "started_ms": "1700000000000",
        "beat_ms": "1700000001000",
        "rtf": "0.05",
    }


def test_absent_values_are_left_out_and_come_back_as_absent() -> None:
    assert "vram_used_mb" not in encode(WORKER)
    assert decode(WorkerRecord, raw(encode(WORKER))).vram_used_mb is None
    assert decode(SessionRecord, {b"state": b"idle"}) == SessionRecord(state="idle")


def test_a_newer_worker_may_say_more() -> None:
    fields = raw(encode(WORKER)) | {b"mood": b"\xff"}
    assert decode(WorkerRecord, fields) == WORKER


@pytest.mark.parametrize(
    ("kind", "fields", "complaint"),
    [
        (SessionRecord, {}, "state: is missing"),
        (SessionRecord, {b"state": b"asleep"}, "state: 'asleep' is not one of queued, speaking"),
        (SessionRecord, {b"state": b"idle", b"turn": b"three"}, "turn: 'three' is not a number"),
        (SessionRecord, {b"state": b"\xff"}, "state: '\\ufffd' is not one of queued"),
        (WorkerRecord, {b"state": b"ready"}, "host: is missing"),
        (WorkerRecord, raw(encode(WORKER)) | {b"rtf": b"fast"}, "rtf: 'fast' is not a number"),
    ],
)
def test_a_field_at_fault_is_named(
    kind: type[SessionRecord], fields: dict[bytes, bytes], complaint: str
) -> None:
    with pytest.raises(FieldError) as caught:
        decode(kind, fields)
    assert str(caught.value).startswith(complaint)
