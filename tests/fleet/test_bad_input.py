"""Bad input through a raw client: answered as the protocol says, and nobody else is any the worse.

All tests share one worker. After each of them it must speak for others and have all slots free.
"""

import time
from collections.abc import Mapping
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness.fleet import HANG_S
from tests.harness.steady import ANSWER_S, SECRET, TEXT, Steady
from voicefleet import UnknownModel, VoiceFleet
from voicefleet.schemas import audio
from voicefleet.schemas.audio import End
from voicefleet.schemas.fields import SESSION

pytestmark = pytest.mark.anyio

NAMES = "1 to 128 characters of A-Z a-z 0-9 _ . : -"


@pytest.fixture
def fleet(steady_fleet: Steady) -> Steady:
    return steady_fleet


class TestRefused:
    """Invalid where the session can be read: an end in the session, and a dead letter."""

    @pytest.mark.parametrize(
        ("fields", "complaint"),
        [
            ({}, "text: is missing or empty; give text, or stream 1"),
            ({"stream": "0"}, "text: is missing or empty; give text, or stream 1"),
            ({"text": TEXT, "stream": "1"}, "text: is not allowed with stream 1"),
            ({"text": "", "stream": "1"}, "text: is not allowed with stream 1"),
            ({"text": ""}, "text: is missing or empty"),
            (
                {"text": SECRET.ljust(10_001, "x")},
                "text: has 10001 characters; at most 10000 are allowed",
            ),
            ({"text": SECRET.encode() + b"\xff"}, "text: is not valid UTF-8 at byte 11"),
            ({"text": b"\xed\xa0\x80"}, "text: is not valid UTF-8 at byte 0"),
        ],
    )
    async def test_text(self, fleet: Steady, fields: dict[str, Any], complaint: str) -> None:
        heard = await fleet.refuse(fleet.new_session(), complaint, **fields)
        assert SECRET not in (heard.end.error or "")

    @pytest.mark.parametrize(
        ("field", "value", "allowed"),
        [
            ("voice", b"\xff\xfe", "is not valid UTF-8 at byte 0"),
            ("voice", "", f"'' is not {NAMES}"),
            ("voice", "two words", f"'two words' is not {NAMES}"),
            ("voice", "nobody", "'nobody' is not one of tone-a, tone-b"),
            ("mode", "shouted", "'shouted' is not one of zero_shot, cross_lingual, instruct, sft"),
            ("mode", b"\xc3", "is not valid UTF-8 at byte 0"),
            ("mode", "zero_shot", "'zero_shot' is not one of none: this model has no modes"),
            ("instruct", "Softly.", "this model takes no style"),
            ("instruct", "x" * 1001, "has 1001 characters; at most 1000"),
            ("speed", "9", "'9' is not a number from 0.5 to 2.0"),
            ("speed", "0.49", "'0.49' is not a number from 0.5 to 2.0"),
            ("speed", "nan", "'nan' is not a number from 0.5 to 2.0"),
            ("speed", "quick", "'quick' is not a number from 0.5 to 2.0"),
            ("speed", "", "'' is not a number from 0.5 to 2.0"),
            ("sample_rate", "44100", "'44100' is not one of 8000, 16000, 24000, 48000"),
            ("sample_rate", "48k", "'48k' is not one of 8000, 16000, 24000, 48000"),
            ("seed", "-1", "'-1' is not an integer from 0 to 9223372036854775807"),
            ("seed", str(2**63), f"'{2**63}' is not an integer from 0 to 9223372036854775807"),
            ("seed", "9" * 5000, f"'{'9' * 39}... is not an integer from 0 to 92233720368547758"),
            ("lead_ms", "-20", "'-20' is not an integer from 0 to 60000"),
            ("lead_ms", "60001", "'60001' is not an integer from 0 to 60000"),
            ("deadline_ms", "soon", "'soon' is not an integer from 0 to 9223372036854775807"),
            ("deadline_ms", "-1", "'-1' is not an integer from 0 to 9223372036854775807"),
            ("interrupt", "2", "'2' is not 0 or 1"),
            ("stream", "yes", "'yes' is not 0 or 1"),
        ],
    )
    async def test_a_field(self, fleet: Steady, field: str, value: object, allowed: str) -> None:
        wrong: dict[str, Any] = {field: value}
        await fleet.refuse(fleet.new_session(), f"{field}: {allowed}", text=TEXT, **wrong)

    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            ("", "'' is not"),
            ("a/b", "'a/b' is not"),
            ("r\n", r"'r\n' is not"),
            ("x" * 129, f"'{'x' * 39}... is not"),
            (b"\xff", "is not valid UTF-8 at byte 0"),
        ],
    )
    async def test_a_name_leaves_the_turn_that_of_its_entry(
        self, fleet: Steady, name: object, shown: str
    ) -> None:
        heard = await fleet.refuse(
            fleet.new_session(), f"request: {shown}", text=TEXT, request=name
        )
        letter = (await fleet.dead())[-1]
        assert heard.end.request == letter["entry"]

    async def test_its_text_stream_goes_with_it(self, fleet: Steady) -> None:
        session = fleet.new_session()
        await fleet.redis.xadd(fleet.keys.text(session, "r"), {"text": TEXT})
        await fleet.refuse(session, "speed: ", request="r", stream=1, speed=9)
        assert await fleet.redis.xlen(fleet.keys.text(session, "r")) == 0

    async def test_many_at_once_are_each_answered(self, fleet: Steady) -> None:
        session = fleet.new_session()
        pipe = fleet.redis.pipeline(transaction=False)
        for index in range(40):
            fields = {"session": session, "request": f"r{index}", "text": TEXT, "speed": 9}
            pipe.xadd(fleet.keys.requests(fleet.model), fields)
        await pipe.execute()
        turns = await fleet.turns(session, 40)
        assert [turn.end.request for turn in turns] == [f"r{index}" for index in range(40)]
        assert {turn.end.reason for turn in turns} == {"rejected"}


class TestUnanswerable:
    """Nobody can be answered where the session cannot be read: a dead letter alone."""

    @pytest.mark.parametrize(
        ("session", "complaint"),
        [
            (None, f"session: is missing; it is {NAMES}"),
            ("", f"session: '' is not {NAMES}"),
            ("s\n", rf"session: 's\n' is not {NAMES}"),
            ("x" * 129, f"session: '{'x' * 39}... is not {NAMES}"),
            ("s{1}", f"session: 's{{1}}' is not {NAMES}"),
            (b"s\xff", "session: is not valid UTF-8 at byte 1"),
            (b"\0", rf"session: '\x00' is not {NAMES}"),
        ],
    )
    async def test_a_session(self, fleet: Steady, session: object, complaint: str) -> None:
        entry = await fleet.put(session=session, text=TEXT)
        letter = await fleet.dead_letter(entry)
        assert letter == {
            "model": fleet.model,
            "entry": entry,
            "request": entry,
            "reason": "rejected",
            "error": complaint,
            "worker": "w1",
        }

    async def test_fields_of_nobody(self, fleet: Steady) -> None:
        raw: Any = {b"": b"", b"\xff\x00": b"\xfe" * 1000, b"TEXT": TEXT.encode()}
        entry = (await fleet.redis.xadd(fleet.keys.requests(fleet.model), raw)).decode()
        assert (await fleet.dead_letter(entry))["error"].startswith("session: is missing")


class TestAccepted:
    """Odd, and valid all the same."""

    async def test_ten_thousand_characters(self, fleet: Steady) -> None:
        session = fleet.new_session()
        await fleet.add(session, "Grüße, naïve Öfen. ".ljust(10_000, "ö"), lead_ms=200)
        await fleet.hear(session, until=1)
        await fleet.control(session, "stop")
        assert (await fleet.hear(session)).end.reason == "stopped"

    @pytest.mark.parametrize("text", [" \t\n", "...", "?!—", "🎉🎉", "***", "\u200b\ufeff", "\0"])
    async def test_a_text_with_nothing_to_say(self, fleet: Steady, text: str) -> None:
        session = fleet.new_session()
        await fleet.add(session, text)
        await fleet.add(session, TEXT)
        silent, spoken = await fleet.turns(session, 2)
        assert silent.start is not None
        assert (silent.end.reason, silent.end.error, silent.end.frames) == ("completed", None, 0)
        assert spoken.end.reason == "completed"

    @pytest.mark.parametrize("pieces", [[], [{"text": "..."}], [{"flush": 1}, {"text": "🎉"}]])
    async def test_a_text_stream_with_nothing_to_say(
        self, fleet: Steady, pieces: list[dict[str, Any]]
    ) -> None:
        session = fleet.new_session()
        await fleet.add(session, request="r", stream=1)
        for piece in [*pieces, {"end": 1}]:
            await fleet.write(session, "r", **piece)
        heard = await fleet.hear(session)
        assert (heard.end.reason, heard.end.frames) == ("completed", 0)

    @pytest.mark.parametrize("trace", ["", "garbage", b"\xff\xfe", "00-" + "0" * 9999])
    async def test_a_traceparent_that_is_none(self, fleet: Steady, trace: Any) -> None:
        session = fleet.new_session()
        await fleet.add(session, TEXT, traceparent=trace)
        assert (await fleet.hear(session)).end.reason == "completed"

    async def test_fields_that_are_unknown(self, fleet: Steady) -> None:
        session = fleet.new_session()
        raw: Any = {"session": session, "text": TEXT, b"\xff": b"\xfe", "": "", "Speed": "9"}
        await fleet.redis.xadd(fleet.keys.requests(fleet.model), raw)
        assert (await fleet.hear(session)).end.reason == "completed"

    async def test_a_field_that_comes_twice_counts_as_it_came_last(self, fleet: Steady) -> None:
        session = fleet.new_session()
        await fleet.redis.execute_command(
            *("XADD", fleet.keys.requests(fleet.model), "*", "session", fleet.new_session()),
            *("session", session, "speed", "9", "speed", "2", "text", TEXT),
        )
        assert (await fleet.hear(session)).end.reason == "completed"


class TestOrder:
    """A request that is refused while its session is speaking is answered in its order."""

    @pytest.mark.parametrize(
        "wrong", [{"speed": 9}, {"voice": "nobody"}, {"request": "a/b"}, {"text": b"\xff"}], ids=str
    )
    async def test_waits_its_turn_without_a_slot(
        self, fleet: Steady, wrong: dict[str, Any]
    ) -> None:
        session, other = fleet.new_session(), fleet.new_session()
        await fleet.add(session, TEXT, lead_ms=200)
        await fleet.hear(session, until=1)
        fields: dict[str, Any] = {"request": "wrong", "text": TEXT, **wrong}
        refused = await fleet.put(session=session, **fields)
        await fleet.add(session, TEXT, request="after")
        await fleet.add(other, TEXT)
        assert (await fleet.hear(other)).end.reason == "completed"
        assert (await fleet.state(session))["turn"] == "1"
        await self._slots_taken(fleet, 1)
        first, second, third = await fleet.turns(session, 3)
        assert [turn.end.reason for turn in (first, second, third)] == [
            "completed",
            "rejected",
            "completed",
        ]
        assert second.start is None
        assert second.end.request == (refused if "request" in wrong else "wrong")
        assert third.end.request == "after"
        assert third.arrivals[-1] - first.arrivals[-1] <= ANSWER_S

    async def _slots_taken(self, fleet: Steady, count: int) -> None:
        with anyio.fail_after(ANSWER_S):
            while True:
                record = await fleet.worker("w1")
                if int(record["slots_total"]) - int(record["slots_free"]) == count:
                    return
                await anyio.sleep(0.01)

    async def test_one_that_interrupts_and_is_refused_interrupts_nothing(
        self, fleet: Steady
    ) -> None:
        session = fleet.new_session()
        await fleet.add(session, TEXT, lead_ms=200)
        await fleet.hear(session, until=1)
        await fleet.put(session=session, text=TEXT, interrupt=1, speed=9)
        turns = await fleet.turns(session, 2)
        assert [turn.end.reason for turn in turns] == ["completed", "rejected"]

    async def test_one_whose_name_was_taken_is_ignored(self, fleet: Steady) -> None:
        session = fleet.new_session()
        await fleet.add(session, TEXT, request="r")
        first = await fleet.hear(session)
        await fleet.put(session=session, request="r", text=TEXT, speed=9)
        await fleet.settled()
        assert await fleet.redis.xlen(fleet.keys.audio(session)) == len(first.entries)

    async def test_a_stopped_session_still_says_what_was_wrong(self, fleet: Steady) -> None:
        session = fleet.new_session()
        await fleet.control(session, "stop")
        await fleet.refuse(session, "speed: ", text=TEXT, speed=9)


class TestTextStream:
    """Streamed text that is not what it should be ends its turn, and only that."""

    async def test_that_never_comes(self, fleet: Steady) -> None:
        session = fleet.new_session()
        await fleet.add(session, request="r", stream=1)
        await fleet.add(session, TEXT)
        silent, after = await fleet.turns(session, 2)
        assert (silent.end.reason, silent.end.error) == ("failed", "text_timeout")
        assert silent.end.frames == 0
        assert after.end.reason == "completed"
        await fleet.settled()
        assert (await fleet.dead())[-1]["error"] == "text_timeout"

    @pytest.mark.parametrize(
        ("piece", "complaint"),
        [
            ({"text": b"\xff"}, "text: is not valid UTF-8 at byte 0"),
            ({"text": SECRET * 1000}, "text: has 11000 characters; at most 10000 are allowed"),
            ({"text": SECRET, "flush": "2"}, "flush: '2' is not 0 or 1"),
            ({"text": SECRET, "end": "yes"}, "end: 'yes' is not 0 or 1"),
            ({"end": b"\xff"}, "end: is not valid UTF-8 at byte 0"),
        ],
    )
    async def test_with_a_piece_that_is_wrong(
        self, fleet: Steady, piece: dict[str, Any], complaint: str
    ) -> None:
        session = fleet.new_session()
        await fleet.add(session, request="r", stream=1)
        await fleet.write(session, "r", text=TEXT, flush=1)
        await fleet.hear(session, until=1)
        begun = time.monotonic()
        await fleet.write(session, "r", **piece)
        heard = await fleet.hear(session)
        assert time.monotonic() - begun <= ANSWER_S
        assert (heard.end.reason, heard.end.error) == ("failed", f"text stream: {complaint}")
        assert heard.frames
        await fleet.settled()
        assert await fleet.redis.xlen(fleet.keys.text(session, "r")) == 0

    async def test_unknown_fields_and_empty_pieces_say_nothing(self, fleet: Steady) -> None:
        session = fleet.new_session()
        await fleet.add(session, request="r", stream=1)
        for piece in ({"colour": b"\xff"}, {"text": ""}, {"text": TEXT}, {"end": 1}):
            await fleet.write(session, "r", **piece)
        heard = await fleet.hear(session)
        assert heard.end.reason == "completed"
        assert [frame.text for frame in heard.frames if frame.text] == [TEXT]


NO_WISH: list[Any] = [
    *("halt!", "", " ", "stop:", "stop:a b", "stop:r\n:", "pause:now", ":", "0", "stopp"),
    *("stop:" + "x" * 129, b"\xff\xfe\x00", b"\0" * 2**20),
]


async def test_a_control_value_that_says_nothing_leaves_things_as_they_are(fleet: Steady) -> None:
    async def try_out(value: Any) -> None:
        session = fleet.new_session()
        await fleet.control(session, value)
        await fleet.add(session, TEXT, lead_ms=60)
        await fleet.hear(session, until=1)
        await fleet.control(session, "pause")
        with anyio.fail_after(HANG_S):
            while (await fleet.state(session))["state"] != "paused":
                await anyio.sleep(0.01)
        held = await fleet.redis.xlen(fleet.keys.audio(session))
        await fleet.control(session, value)
        await anyio.sleep(0.2)
        assert await fleet.redis.xlen(fleet.keys.audio(session)) == held, ascii(value)[:20]
        await fleet.control(session, "resume")
        await fleet.hear(session, until=held + 1)
        await fleet.control(session, value)
        assert (await fleet.hear(session)).end.reason == "completed"

    async with anyio.create_task_group() as tasks:
        for value in NO_WISH:
            tasks.start_soon(try_out, value)


class TestUnknownModel:
    async def test_waits_for_a_worker_that_serves_it(self, fleet: Steady) -> None:
        session = fleet.new_session()
        await fleet.add(session, TEXT, model="tone-none")
        # A session may have turns of several models: this one's other turns need not wait.
        await fleet.add(session, TEXT)
        assert (await fleet.hear(session)).end.reason == "completed"
        key = fleet.keys.requests("tone-none")
        assert await fleet.redis.xlen(key) == 1
        assert await fleet.redis.xinfo_groups(key) == []

    async def test_is_refused_by_the_client(self, fleet: Steady, module_url: str) -> None:
        async with VoiceFleet(module_url, prefix=fleet.keys.prefix) as client:
            with pytest.raises(UnknownModel, match="served now: tone-test"):
                async for _ in client.speak(TEXT, model="tone-other"):
                    pass
        assert not await fleet.redis.exists(fleet.keys.requests("tone-other"))


# Anything at all.

ANYTHING = st.one_of(st.binary(max_size=20), st.text(max_size=10).map(str.encode))
NUMBERS = st.sampled_from([b"0", b"1", b"2", b"-1", b"9", b"1.5", b"nan", b"44100", b"8000"])
KNOWN = {
    b"request": st.sampled_from([b"r1", b"r2", b"a/b"]) | ANYTHING,
    b"text": st.sampled_from([b"Hi.", b"", "🎉".encode(), b"x" * 10_001]) | ANYTHING,
    b"voice": st.sampled_from([b"tone-a", b"tone-b", b"joe"]) | ANYTHING,
    b"mode": st.sampled_from([b"sft", b"zero_shot"]) | ANYTHING,
    b"instruct": ANYTHING,
    **dict.fromkeys(
        (b"stream", b"speed", b"seed", b"sample_rate", b"lead_ms", b"deadline_ms", b"interrupt"),
        NUMBERS | ANYTHING,
    ),
    b"traceparent": ANYTHING,
}
REQUESTS = st.lists(
    st.builds(
        lambda known, unknown: unknown | known,
        st.fixed_dictionaries({}, optional=KNOWN),
        st.dictionaries(ANYTHING.filter(lambda name: name != b"session"), ANYTHING, max_size=3),
    ),
    min_size=1,
    max_size=4,
)


def turn_name(entry: str, fields: Mapping[bytes, bytes]) -> str:
    """The name that the protocol gives a request's turn."""
    name = fields.get(b"request", b"").decode("utf-8", "replace")
    return name if SESSION.fullmatch(name) else entry


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(requests=REQUESTS, strays=st.lists(ANYTHING, max_size=2))
async def test_anything_at_all(
    fleet: Steady, requests: list[dict[bytes, bytes]], strays: list[bytes]
) -> None:
    """Every entry leaves the queue, and every request of a session gets exactly one end."""
    session = fleet.new_session()
    key = fleet.keys.requests(fleet.model)
    pipe = fleet.redis.pipeline(transaction=False)
    for fields in requests:
        pipe.xadd(key, {b"session": session.encode(), **fields})
    for stray in strays:
        pipe.xadd(key, {b"session": stray + b"\xff", b"text": stray})
    entries = [entry.decode() for entry in await pipe.execute()]
    names = {turn_name(*pair) for pair in zip(entries, requests, strict=False)}
    for name in names:
        await fleet.write(session, name, end=1)  # for those whose text is streamed
    turns = await fleet.turns(session, len(names))
    assert sorted(turn.end.request for turn in turns) == sorted(names)
    await fleet.settled()
    kept = [audio.decode(*entry) for entry in await fleet.redis.xrange(fleet.keys.audio(session))]
    assert sum(isinstance(entry, End) for entry in kept) == len(names)
