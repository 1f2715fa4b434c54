"""Key names, and the Cluster slots that scripts rely on."""

from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from voicefleet.schemas import GROUP, Keys
from voicefleet.schemas.fields import MODEL, SESSION

sessions = st.from_regex(SESSION, fullmatch=True)
models = st.from_regex(MODEL, fullmatch=True)
prefixes = st.from_regex(r"[A-Za-z0-9_.:\-]{1,64}", fullmatch=True)


def slot(key: str) -> int:
    return key_slot(key.encode())


def test_the_names_of_the_protocol() -> None:
    keys = Keys()
    assert keys.requests("piper-en-joe") == "tts:requests:piper-en-joe"
    assert keys.text("s1", "r7") == "tts:text:{s1}:r7"
    assert keys.control("s1") == "tts:control:{s1}"
    assert keys.audio("s1") == "tts:audio:{s1}"
    assert keys.session("s1") == "tts:session:{s1}"
    assert keys.worker("gpu0@host") == "tts:worker:gpu0@host"
    assert keys.workers == "tts:workers"
    assert keys.model("piper-en-joe") == "tts:model:piper-en-joe"
    assert keys.dead == "tts:dead"
    assert GROUP == "workers"


@given(prefixes, sessions, sessions)
def test_all_keys_of_a_session_share_its_slot(prefix: str, session: str, request: str) -> None:
    keys = Keys(prefix)
    of_session = [
        keys.text(session, request),
        keys.control(session),
        keys.audio(session),
        keys.session(session),
        keys.lease(session),
        keys.spoken(session),
        keys.refused(session),
    ]
    assert {slot(key) for key in of_session} == {slot(session)}
    assert len(set(of_session)) == len(of_session)


@given(prefixes, models)
def test_all_keys_of_a_queue_share_the_slot_of_its_stream(prefix: str, model: str) -> None:
    keys = Keys(prefix)
    beside = (keys.wake, keys.order, keys.backlog, keys.books, keys.ranks, keys.keeper)
    assert {slot(key(model)) for key in beside} == {slot(keys.requests(model))}
    assert len({key(model) for key in beside}) == len(beside)


@given(prefixes, sessions, sessions, models)
def test_every_key_is_under_the_prefix(prefix: str, session: str, request: str, model: str) -> None:
    keys = Keys(prefix)
    every = [
        keys.requests(model), keys.text(session, request), keys.control(session),
        keys.audio(session), keys.session(session), keys.worker(model), keys.workers,
        keys.model(model), keys.dead, keys.lease(session), keys.spoken(session), keys.wake(model),
    ]  # fmt: skip
    assert all(key.startswith(f"{prefix}:") for key in every)
    assert len(set(every)) == len(every)


@given(sessions, sessions)
def test_two_sessions_never_share_a_key(one: str, other: str) -> None:
    keys = Keys()
    if one != other:
        assert keys.audio(one) != keys.audio(other)
        assert keys.text(one, "r") != keys.text(other, "r")
