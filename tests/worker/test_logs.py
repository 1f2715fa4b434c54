"""What log lines say, and what they never say."""

import io
import json
import logging
from typing import Any

import anyio
import pytest
import structlog

from voicefleet.schemas import Request
from voicefleet.wire.endpoint import RedisConfig, resolve
from voicefleet.worker import logs
from voicefleet.worker.config.sections import LoggingConfig

SPOKEN = "the secret plan"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_line_has_time_level_event_and_what_is_bound(out: io.StringIO) -> None:
    log = structlog.get_logger()
    logs.configure(LoggingConfig(), worker="gpu0@host", stream=out)
    with logs.bound(session="s1", turn=3):
        log.info("turn ended", frames=412)
    log.info("idle")
    first, second = lines(out)
    assert list(first)[:3] == ["timestamp", "level", "event"]
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "level": "info",
        "event": "turn ended",
        "worker": "gpu0@host",
        "session": "s1",
        "turn": 3,
        "frames": 412,
    }
    assert "session" not in second


async def test_a_task_keeps_the_fields_it_was_started_with(out: io.StringIO) -> None:
    logs.configure(LoggingConfig(), stream=out)
    log = structlog.get_logger()

    async def turn() -> None:
        await anyio.lowlevel.checkpoint()
        log.info("from the task")
        await anyio.to_thread.run_sync(lambda: log.info("from the thread"))

    async with anyio.create_task_group() as tasks:
        for session in ("s1", "s2"):
            with logs.bound(session=session):
                tasks.start_soon(turn)
    assert sorted((line["event"], line["session"]) for line in lines(out)) == [
        ("from the task", "s1"),
        ("from the task", "s2"),
        ("from the thread", "s1"),
        ("from the thread", "s2"),
    ]


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_lines_below_the_level_are_dropped(level: str, out: io.StringIO) -> None:
    config = LoggingConfig(level=level)  # pyright: ignore[reportArgumentType]
    logs.configure(config, stream=out)
    log = structlog.get_logger()
    levels = ["debug", "info", "warning", "error"]
    for each in levels:
        log.log(logging.getLevelNamesMapping()[each.upper()], "line")
    assert [line["level"] for line in lines(out)] == levels[levels.index(level) :]


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("level", ["info", "warning", "error", "critical", "exception"])
@pytest.mark.parametrize("allowed", [True, False])
def test_no_text_at_info_or_above(form: str, level: str, allowed: bool, out: io.StringIO) -> None:
    config = LoggingConfig(level="debug", format=form, text=allowed)  # pyright: ignore[reportArgumentType]
    logs.configure(config, stream=out)
    say = getattr(structlog.get_logger(), level)
    request = Request(session="s1", text=SPOKEN, instruct=SPOKEN)
    say("plain", text=SPOKEN, instruct=SPOKEN)
    say("deep", request=request, pieces=[{"text": SPOKEN}], nested={"a": ({"text": SPOKEN},)})
    with logs.bound(text=SPOKEN):
        say("bound")
    assert SPOKEN not in out.getvalue()
    assert "text_chars" in out.getvalue()


@pytest.mark.parametrize("allowed", [True, False])
def test_text_at_debug_only_where_the_configuration_says_so(
    allowed: bool, out: io.StringIO
) -> None:
    logs.configure(LoggingConfig(level="debug", text=allowed), stream=out)
    structlog.get_logger().debug("piece", text=SPOKEN, request={"text": SPOKEN})
    (line,) = lines(out)
    assert (line.get("text") == SPOKEN) is allowed
    assert (SPOKEN in out.getvalue()) is allowed
    assert line.get("text_chars") == (None if allowed else len(SPOKEN))


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:hunter2@host:6379/0",
        "rediss://:hunter2@host",
        "redis+sentinel://user:hunter2@a,b/primary",
        "rediss+cluster://:p@hunter2/@a:1,b:2",
    ],
)
def test_no_credentials(url: str, out: io.StringIO) -> None:
    logs.configure(LoggingConfig(), stream=out)
    log = structlog.get_logger()
    config = RedisConfig(url=url, password="hunter2", sentinel_password="hunter2")
    log.info(f"connecting to {url}", url=url, urls=[url], config=config)
    log.info("resolved", where=resolve(RedisConfig(url="redis://:hunter2@host")))
    log.info("object", error=OSError(f"no route to {url}"))
    try:
        raise ConnectionError(url)
    except ConnectionError:
        log.exception("failed")
    logging.getLogger("redis").warning("lost %s", url)
    assert "hunter2" not in out.getvalue()
    assert "host" in out.getvalue() or "primary" in out.getvalue() or "a:1" in out.getvalue()
    assert "ConnectionError" in out.getvalue()


def test_other_libraries_speak_from_warning_on_and_in_our_form(out: io.StringIO) -> None:
    logs.configure(LoggingConfig(level="debug"), worker="w", stream=out)
    library = logging.getLogger("phonemizer")
    library.debug("phonemes of %s", SPOKEN)
    library.info("loaded")
    library.warning("slow")
    (line,) = lines(out)
    assert (line["event"], line["level"], line["worker"]) == ("slow", "warning", "w")


def test_auto_is_for_people_on_a_terminal_and_for_machines_elsewhere(out: io.StringIO) -> None:
    terminal = Terminal()
    for stream in (terminal, out):
        logs.configure(LoggingConfig(), stream=stream)
        structlog.get_logger().info("ready", slots=8, pcm=bytes(1920))
    assert "\x1b[" in terminal.getvalue()
    (line,) = lines(out)
    assert (line["slots"], line["pcm"]) == (8, "1920 bytes")


def test_stderr_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LoggingConfig())
    structlog.get_logger().info("ready")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["event"] == "ready"


def test_a_warning_that_repeats_without_end_is_counted_instead(out: io.StringIO) -> None:
    logs.configure(LoggingConfig(), stream=out)
    log = structlog.get_logger()
    for n in range(1000):
        log.warning("append_refused", session=f"s{n}")
        log.info("turn")
    log.warning("queue_lost")
    written = [line["event"] for line in lines(out)]
    assert written.count("append_refused") == logs.FREELY
    assert written.count("turn") == 1000
    assert written.count("queue_lost") == 1


def test_what_was_suppressed_is_said_once_in_a_while() -> None:
    now = [0.0]
    moderate = logs.Moderation(lambda: now[0])

    def warn() -> dict[str, Any] | None:
        try:
            return dict(moderate(None, "warning", {"event": "append_refused"}))
        except structlog.DropEvent:
            return None

    written: list[dict[str, Any]] = []
    for _ in range(240):  # thirty seconds, eight a second
        said = warn()
        if said is not None:
            written.append(said)
        now[0] += 0.125
    assert [line.get("suppressed", 0) for line in written][logs.FREELY :] == [79, 79]
    now[0] += logs.EVERY_S
    again = [warn() for _ in range(logs.FREELY + 1)]
    assert again[0] is not None
    assert again[0]["suppressed"] > 0
    assert again[1] == {"event": "append_refused"}
    assert again[-1] is None
