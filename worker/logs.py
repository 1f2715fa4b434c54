"""Logging with structlog: JSON lines on stderr, or coloured ones on a terminal.

    log = structlog.get_logger()

    with logs.bound(session="s1", turn=3):
        log.info("turn_ended", reason="completed", frames=412)

No line carries a credential. Lines at info or above never carry text that is spoken, and debug
lines only if the configuration allows it, whatever the caller passes. Warnings and errors of other
libraries come out in the same form.
"""

import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TextIO, cast

import msgspec
import structlog
from structlog.contextvars import bound_contextvars
from structlog.typing import EventDict, Processor, WrappedLogger

from voicefleet.worker.config.sections import LoggingConfig

bound = bound_contextvars
"""Adds fields to every line of a block, and of the tasks and threads that it starts."""

SPOKEN: Final = frozenset({"text", "instruct"})
"""Fields that hold what users write: the text that is spoken, and how to speak it."""

SECRETS: Final = frozenset({"password", "sentinel_password"})
"""Fields whose values are hidden."""

FREELY: Final = 5
"""How many warnings of one event are written in a row; after that, one each ``EVERY_S``."""

EVERY_S: Final = 10.0

_HIDDEN: Final = "***"
# Up to the last @ before a space: an unescaped password may contain an @ itself.
_CREDENTIALS: Final = re.compile(r"(rediss?(?:\+\w+)?://)[^\s'\"]*@")


def configure(config: LoggingConfig, *, worker: str = "", stream: TextIO | None = None) -> None:
    """Set up logging for the process.

    Args:
        config: The ``logging`` section.
        worker: The worker's name, a field of every line.
        stream: Where lines go; stderr by default.
    """
    out: TextIO = sys.stderr if stream is None else stream
    console = config.format == "console" or (config.format == "auto" and out.isatty())
    moderation = Moderation()
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(
            colors=out.isatty(),
            # Plain, for rich's tracebacks print local variables: credentials and text.
            exception_formatter=structlog.dev.plain_traceback,
        )
        if console
        else structlog.processors.JSONRenderer(serializer=_json)
    )
    chain: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        _Worker(worker),
        Discretion(text=config.text),
    ]
    level = logging.getLevelNamesMapping()[config.level.upper()]
    structlog.configure(
        processors=[moderation, *chain, renderer],
        # Methods below the level are compiled to do nothing.
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(out),
        # Loggers are module constants: one that was used before this call would stay as it was.
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=chain,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    # Libraries' debug lines are left out: a phonemiser's contain the text.
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)


class _Worker:
    def __init__(self, name: str) -> None:
        self._fields = {"worker": name} if name else {}

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {**self._fields, **event}


class Moderation:
    """Drops warnings that repeat without end; the next one says how many, in ``suppressed``.

    Warnings of one event count together, whatever their sessions: a server that is out of memory
    refuses them all, again and again. An event that was absent for ``EVERY_S`` counts from zero.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._runs: dict[str, _Run] = {}

    def __call__(self, _logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        """Return the event, with the number of those dropped before it.

        Raises:
            structlog.DropEvent: It was written often enough lately.
        """
        if method != "warning":
            return event
        now = self._clock()
        run = self._runs.setdefault(str(event.get("event")), _Run())
        if now - run.came_at >= EVERY_S:
            run.written = 0
        run.came_at = now
        if run.written >= FREELY and now - run.written_at < EVERY_S:
            run.suppressed += 1
            raise structlog.DropEvent
        run.written += 1
        run.written_at = now
        if run.suppressed:
            event = {**event, "suppressed": run.suppressed}
            run.suppressed = 0
        return event


class _Run(msgspec.Struct):
    """The warnings of one event: when the last came, when one was last written, how many."""

    came_at: float = -EVERY_S
    written_at: float = -EVERY_S
    written: int = 0
    suppressed: int = 0


class Discretion:
    """Removes text that is spoken and credentials from an event, at any depth.

    A field of ``SPOKEN`` becomes the number of its characters; debug lines keep it if ``text``.
    """

    def __init__(self, *, text: bool) -> None:
        self._text = text

    def __call__(self, _logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        """Return the event without them."""
        return self._fields(event, keep_text=self._text and method == "debug")

    def _fields(self, fields: Mapping[str, Any], *, keep_text: bool) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, value in fields.items():
            if name in SPOKEN and not keep_text:
                if value is not None:
                    out[f"{name}_chars"] = len(value) if isinstance(value, str | bytes) else 0
            elif name in SECRETS:
                out[name] = _HIDDEN if value else value
            else:
                out[name] = self._value(value, keep_text=keep_text)
        return out

    def _value(self, value: object, *, keep_text: bool) -> object:
        match value:
            case str():
                return _CREDENTIALS.sub(rf"\1{_HIDDEN}@", value) if "://" in value else value
            case None | bool() | int() | float():
                return value
            case bytes() | bytearray():
                return f"{len(value)} bytes"
            case msgspec.Struct():
                return self._fields(msgspec.structs.asdict(value), keep_text=keep_text)
            case Mapping():
                items = cast(Mapping[object, object], value).items()
                return self._fields({str(k): v for k, v in items}, keep_text=keep_text)
            case list() | tuple() | set() | frozenset():
                items = cast(list[object], value)
                return [self._value(item, keep_text=keep_text) for item in items]
            case _:
                # A renderer would call repr(), which hides nothing.
                return self._value(str(value), keep_text=keep_text)


def _json(event: EventDict, **_: object) -> str:
    first = {name: event[name] for name in ("timestamp", "level", "event") if name in event}
    return msgspec.json.encode({**first, **event}).decode()
