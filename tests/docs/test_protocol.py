"""docs/protocol.md against the code: its tables are compared, its examples are run."""

import re
import shlex
import types
from collections.abc import Callable, Iterator
from inspect import Parameter, signature
from typing import Any, Literal, Union, cast, get_args, get_origin

import anyio
import msgspec
import pytest

from tests.harness import ROOT
from tests.harness.fleet import HANG_S, Orchestrator, serving
from voicefleet.schemas import (
    BACKLOG,
    GROUP,
    ORPHANS,
    DeadLetter,
    End,
    Frame,
    Keys,
    Level,
    ModelRecord,
    Request,
    SessionRecord,
    Start,
    TextPiece,
    WorkerRecord,
    control,
)
from voicefleet.schemas import audio as audio_entries
from voicefleet.schemas.audio import REASONS, bytes_per_frame, samples_per_frame
from voicefleet.schemas.fields import MAX_MODEL, MAX_NAME, FieldError
from voicefleet.schemas.records import MAX_DEAD_LETTERS
from voicefleet.schemas.request import (
    MAX_INSTRUCT,
    MAX_TEXT,
    REMEMBERED_NAMES,
    SAMPLE_RATES,
    InvalidRequest,
)
from voicefleet.worker.config.sections import WorkerConfig
from voicefleet.worker.publish.retention import FASTER_KEPT_S

DOCUMENT = (ROOT / "docs/protocol.md").read_text()
ACL = (ROOT / "deploy/redis/users.acl").read_text()
LUA = ROOT / "worker/store/lua"

Row = dict[str, str]


def tables(heading: str) -> list[list[Row]]:
    """The tables under a heading, up to the next one; each row by its column's name."""
    (section,) = re.findall(rf"^#+ {heading}\n(.*?)(?=^#|\Z)", DOCUMENT, re.DOTALL | re.MULTILINE)
    found: list[list[Row]] = []
    for block in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE):
        names, _, *rows = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]]
                           for line in block.splitlines()]  # fmt: skip
        found.append([dict(zip(names, row, strict=True)) for row in rows])
    return found


def table(heading: str) -> dict[str, Row]:
    """The first table under a heading, by its first column without the backquotes."""
    rows = tables(heading)[0]
    return {next(iter(row.values())).strip("`"): row for row in rows}


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def documented_type(kind: object) -> set[str]:
    """How the document may call a field of this Python type."""
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (one for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is Literal:
        return {"text"}
    if get_origin(kind) is tuple:
        return {"list"}
    names = {str: {"text", "name"}, int: {"integer"}, float: {"number"}, bool: {"flag"}}
    return names[kind] if isinstance(kind, type) and kind in names else {"bytes"}


def fields_of(struct: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.name: field for field in msgspec.structs.fields(struct)}


@pytest.mark.parametrize(
    ("heading", "struct"),
    [
        ("Requests", Request),
        ("Streamed text", TextPiece),
        ("The start entry", Start),
        ("A frame entry", Frame),
        ("The end entry", End),
        ("Sessions", SessionRecord),
        ("Workers", WorkerRecord),
        ("Models", ModelRecord),
        ("Dead letters", DeadLetter),
    ],
)
def test_fields_and_their_types(heading: str, struct: type[msgspec.Struct]) -> None:
    documented, fields = table(heading), fields_of(struct)
    if fields.pop("id", None) is not None and struct is not Frame:
        assert documented.pop("event")["meaning"] == f"`{heading.split()[1]}`"
    assert list(documented) == list(fields)
    for name, row in documented.items():
        assert row["type"] in documented_type(fields[name].type), name


@pytest.mark.parametrize(
    ("heading", "struct"),
    [
        ("A frame entry", Frame),
        ("The end entry", End),
        ("Sessions", SessionRecord),
        ("Workers", WorkerRecord),
        ("Models", ModelRecord),
        ("Dead letters", DeadLetter),
    ],
)
def test_which_fields_are_always_present(heading: str, struct: type[msgspec.Struct]) -> None:
    for name, row in table(heading).items():
        if name != "event":
            required = fields_of(struct)[name].required
            assert row["present"] == ("always" if required else "optional"), name


def test_the_defaults_of_a_request() -> None:
    for name, row in table("Requests").items():
        field, default = fields_of(Request)[name], row["default"]
        if field.required:
            assert default == "required"
        elif field.default is None:
            assert not re.fullmatch(r"`[0-9.]+`", default), f"{name} has no default of its own"
        else:
            value = int(field.default) if isinstance(field.default, bool) else field.default
            assert default == f"`{value}`", name


def decodes(name: str, value: str) -> bool:
    fields = {"session": "s1", "text": "x", name: value}
    try:
        Request.decode("1-0", {k.encode(): v.encode() for k, v in fields.items()})
    except InvalidRequest as error:
        assert error.field == name
        return False
    return True


def takes(name: str, value: str) -> bool:
    try:
        TextPiece.decode({name.encode(): value.encode()})
    except FieldError:
        return False
    return True


def bounds(heading: str) -> Iterator[tuple[Callable[[str, str], bool], str, str]]:
    accepts = decodes if heading == "Requests" else takes
    for name, row in table(heading).items():
        yield accepts, name, row["allowed"]


@pytest.mark.parametrize(
    ("accepts", "name", "allowed"), [*bounds("Requests"), *bounds("Streamed text")]
)
def test_the_limits_are_those_of_the_decoder(
    accepts: Callable[[str, str], bool], name: str, allowed: str
) -> None:
    if found := re.fullmatch(r"(\d+) to (\d+) characters", allowed):
        low, high = (int(number) for number in found.groups())
        assert all(accepts(name, "x" * length) for length in (low, high))
        assert not accepts(name, "x" * (high + 1))
        assert low == 0 or not accepts(name, "x" * (low - 1))
    elif found := re.fullmatch(r"([\d.]+) to ([\d.]+)", allowed):
        low, high = found.groups()
        step = 1 if low.isdigit() else 0.001
        beyond = str((int if low.isdigit() else float)(high) + step)
        assert accepts(name, low) and accepts(name, high)
        assert not accepts(name, str(float(low) - step)) and not accepts(name, beyond)
    elif allowed.startswith("one of"):
        assert all(accepts(name, value) for value in quoted(allowed))
        assert not accepts(name, "other")
    else:
        assert allowed in ("", "a voice of the model", "W3C trace context")


def test_values_to_choose_from() -> None:
    requests = table("Requests")
    assert quoted(requests["sample_rate"]["allowed"]) == [str(rate) for rate in SAMPLE_RATES]
    with pytest.raises(InvalidRequest, match=", ".join(quoted(requests["mode"]["allowed"]))):
        Request(session="s", text="x", mode="other").validate()
    for heading, struct in (("Sessions", SessionRecord), ("Workers", WorkerRecord)):
        states = list(get_args(fields_of(struct)["state"].type))
        assert quoted(table(heading)["state"]["meaning"]) == states
    reasons = tables("The end entry")[1]
    assert [row["reason"].strip("`") for row in reasons] == list(REASONS)


def test_what_a_frame_is() -> None:
    start = table("The start entry")
    fixed = {name: start[name]["meaning"] for name in ("frame_ms", "format", "channels")}
    for name, meaning in fixed.items():
        assert quoted(meaning)[0] == str(fields_of(Start)[name].default)
    sizes = [tuple(map(int, row.values())) for row in tables("A frame entry")[1]]
    assert sizes == [(r, samples_per_frame(r), bytes_per_frame(r)) for r in SAMPLE_RATES]


def test_control_values() -> None:
    values = list(table("Control"))
    assert values == ["pause", "resume", "stop", "stop:<request>"]
    assert {level.value for level in Level} == set(values[:-1])
    assert control.decode(b"stop:r1") == control.StopThrough("r1")


def key_patterns() -> set[str]:
    """Every key that the code names, with the document's placeholders."""
    places = {"session": "<S>", "request": "<request>", "model": "<model>", "name": "<name>"}
    keys, found = Keys(), set[str]()
    for name, member in vars(Keys).items():
        if isinstance(member, property):
            found.add(getattr(keys, name))
        elif isinstance(member, types.FunctionType) and not name.startswith("_"):
            own: list[Parameter] = list(signature(member).parameters.values())[1:]
            found.add(getattr(keys, name)(*(places[one.name] for one in own)))
    return found


def key_rows() -> dict[str, Row]:
    public, private = tables("Keys")
    rows = {row["key"].strip("`"): row for row in public}
    return rows | {row["private key"].strip("`"): {**row, "TTL": "some"} for row in private}


def test_keys() -> None:
    assert set(key_rows()) == key_patterns()
    assert list(table("The queue's consumer group")) == [BACKLOG, ORPHANS]
    assert f"the group `{GROUP}`" in DOCUMENT


def test_what_a_client_may_do_is_what_its_user_may() -> None:
    (user,) = re.findall(r"^user orchestrator .*", ACL, re.MULTILINE)
    selectors = re.findall(r"\(([^)]*)\)", user)
    for key, row in key_rows().items():
        if commands := quoted(row.get("a client may", "")):
            kind = key.split("{")[0].split("<")[0]
            (selector,) = (one for one in selectors if f"~{kind}" in one)
            allowed = {word[1:].upper() for word in selector.split() if word[0] == "+"}
            assert set(commands) == allowed - {"PEXPIRE"}, key
        else:
            assert "private key" in row or row["a client may"] == "read"


def test_limits_and_settings() -> None:
    (refused,) = re.findall(r"MOST_REFUSED = (\d+)", (LUA / "refused.lua").read_text())
    (beyond,) = re.findall(
        r"ZREMRANGEBYRANK', spoken, 0, -(\d+)", (LUA / "acquire.lua").read_text()
    )
    assert int(beyond) == REMEMBERED_NAMES + 1
    limits = [float(row["value"]) for row in tables("Limits")[0]]
    assert limits == [
        MAX_NAME,
        MAX_MODEL,
        MAX_TEXT,
        MAX_INSTRUCT,
        REMEMBERED_NAMES,
        int(refused),
        MAX_DEAD_LETTERS,
        FASTER_KEPT_S,
    ]
    for name, row in table("Settings of the worker").items():
        assert float(row["default"]) == fields_of(WorkerConfig)[name].default, name
    # In prose.
    for limit in (REMEMBERED_NAMES, MAX_DEAD_LETTERS):
        assert f"newest {limit}" in DOCUMENT
    assert f"at most {refused} wait for their answer" in DOCUMENT
    assert f"up to {FASTER_KEPT_S:.0f} s of audio" in DOCUMENT


EXAMPLES = [line.strip() for line in DOCUMENT.splitlines() if line.startswith("    r ")]
VALUES = {
    "text": r".*",
    "bytes": r"(?s).*",
    "name": rf"[A-Za-z0-9_.:\-]{{1,{MAX_NAME}}}",
    "integer": r"[0-9]+",
    "number": r"[0-9.]+",
    "flag": r"[01]",
    "list": r"[^\s]*",
}


@pytest.mark.anyio
async def test_every_example_runs_and_writes_what_is_documented(
    fleet: Orchestrator, redis_url: str, prefix: str
) -> None:
    assert len(EXAMPLES) > 20
    async with serving(redis_url, prefix, name="up", max_waiting_turns=1):
        for example in EXAMPLES:
            await run(fleet, example)
        for request in ("r1", "r2", "one-too-many", "another"):
            await fleet.add("s6", "There is no room for two more of these.", request=request)
        await fleet.add("s7", "Too late.", deadline_ms=1)
        await fleet.control("s6", "stop")
        await fleet.settled()
        await look_at_records(fleet)
        await look_at_keys(fleet)


async def run(fleet: Orchestrator, example: str) -> None:
    """Run a command, until its answer has what stands after ``# =>``."""
    line, _, expected = example.partition("# =>")
    command = shlex.split(line.replace("tts:", f"{fleet.keys.prefix}:"))[1:]
    with anyio.fail_after(HANG_S):
        while True:
            answer = " ".join(flat(await fleet.redis.execute_command(*command)))
            if all(words.strip() in answer for words in expected.split(", ")):
                return
            assert command[0] != "XADD" and command[0] != "SET"
            await anyio.sleep(0.02)


def flat(reply: Any) -> list[str]:
    if isinstance(reply, dict):
        reply = list(cast(dict[Any, Any], reply).items())
    if isinstance(reply, list | tuple):
        return [part for item in cast(list[Any], reply) for part in flat(item)]
    return [reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)]


def check(heading: str, raw: dict[bytes, bytes]) -> None:
    """All fields on the wire are documented, and of their types; those always there are there."""
    documented = table(heading)
    for name, value in raw.items():
        row = documented.get(name.decode())
        assert row is not None, f"{heading}: {name.decode()} is not documented"
        shown = value.decode("utf-8", "replace")
        assert re.fullmatch(VALUES[row["type"]], shown), f"{heading}: {name.decode()} {shown!r}"
    always = {name for name, row in documented.items() if row["present"] == "always"}
    assert always <= {name.decode() for name in raw}


async def look_at_records(fleet: Orchestrator) -> None:
    keys, redis = fleet.keys, fleet.redis
    for session in ("s1", "s2", "s5", "s6", "s7"):
        for entry, raw in await redis.xrange(keys.audio(session)):
            kind = type(audio_entries.decode(entry, raw))
            check(
                {Start: "The start entry", Frame: "A frame entry", End: "The end entry"}[kind], raw
            )
    check("Sessions", await redis.hgetall(keys.session("s1")))
    worker = await redis.hgetall(keys.worker("up"))
    assert worker.pop(b"instance"), "the document names it as private"
    check("Workers", worker)
    check("Models", await redis.hgetall(keys.model("tone-test")))
    letters = [letter for _, letter in await redis.xrange(keys.dead)]
    assert len(letters) == 3, "one example and two of too many"
    for letter in letters:
        check("Dead letters", letter)


async def look_at_keys(fleet: Orchestrator) -> None:
    """Each key that there is is documented, and has the type and a TTL as it says there."""
    patterns = {
        re.sub(r"<\w+>", ".+", re.escape(key.replace("tts:", f"{fleet.keys.prefix}:"))): row
        for key, row in key_rows().items()
    }
    async for key in fleet.redis.scan_iter(match=f"{fleet.keys.prefix}:*"):
        (row,) = (row for pattern, row in patterns.items() if re.fullmatch(pattern, key.decode()))
        assert row["type"] == (await fleet.redis.type(key)).decode(), key
        assert (await fleet.redis.ttl(key) == -1) is row["TTL"].startswith("none"), key
