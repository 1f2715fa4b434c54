"""The client's errors. Every one is a ``VoiceFleetError``.

``schemas.InvalidRequest`` (a ``ValueError``) is raised for a request that breaks a limit of the
protocol; it is found before anything is sent.
"""

from collections.abc import Generator
from contextlib import contextmanager

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    RedisClusterException,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from voicefleet.schemas import End, EntryId
from voicefleet.wire.endpoint import Endpoint
from voicefleet.wire.link import LinkClosedError, ReplyError


class VoiceFleetError(Exception):
    """Base of all errors of the client."""


class ServerUnreachable(VoiceFleetError):
    """Redis does not answer. The last command may or may not have been carried out."""


class ServerRefused(VoiceFleetError):
    """Redis answered with an error: wrong credentials, missing rights, or a key of another type."""


class UnknownModel(VoiceFleetError):
    """No worker serves ``model`` now. ``served`` lists the models that are."""

    def __init__(self, model: str, served: tuple[str, ...]) -> None:
        names = f"served now: {', '.join(served)}" if served else "no model is served now"
        super().__init__(f"no worker serves {model!r}; {names}")
        self.model = model
        self.served = served


class StreamGap(VoiceFleetError):
    """The entries between ``after`` and ``found`` were trimmed before they were read.

    This happens to a reader that falls behind by more than the worker's ``audio_window_s``.
    """

    def __init__(self, after: EntryId, found: EntryId) -> None:
        super().__init__(f"entries between {after} and {found} were trimmed before they were read")
        self.after = after
        self.found = found


class ForeignEntry(VoiceFleetError):
    """The audio stream holds an entry that is not of the protocol."""


class TurnEnded(VoiceFleetError):
    """Text was written to a turn that has ended. ``end`` says how."""

    def __init__(self, end: End) -> None:
        super().__init__(f"turn {end.request!r} has ended: {end.reason}")
        self.end = end


class TurnError(VoiceFleetError):
    """A turn was not spoken as asked. ``end`` is its end entry."""

    def __init__(self, end: End) -> None:
        super().__init__(f"turn {end.request!r} {end.reason}: {end.error or 'no reason was given'}")
        self.end = end

    @property
    def error(self) -> str:
        """The ``error`` of the end entry, empty if there is none."""
        return self.end.error or ""


class TurnRejected(TurnError):
    """The request is invalid, or too many wait in the session."""


class TurnExpired(TurnError):
    """The turn had not started by its deadline, and was not spoken."""


class TurnFailed(TurnError):
    """The fleet could not speak the turn, or not to its end."""


def raise_for_end(end: End) -> None:
    """Raise the ``TurnError`` of an end that is rejected, expired or failed; nothing of others."""
    match end.reason:
        case "rejected":
            raise TurnRejected(end)
        case "expired":
            raise TurnExpired(end)
        case "failed":
            raise TurnFailed(end)
        case "completed" | "stopped" | "interrupted":
            return


@contextmanager
def translated(endpoint: Endpoint) -> Generator[None]:
    """Raise ``ServerUnreachable`` or ``ServerRefused`` for errors of redis-py and of links."""

    def message(error: Exception) -> str:
        problem = str(error) or type(error).__name__
        return problem if problem.startswith(repr(endpoint)) else f"{endpoint!r}: {problem}"

    try:
        yield
    except (AuthenticationError, AuthorizationError) as error:
        raise ServerRefused(message(error)) from error
    except (
        RedisConnectionError,
        RedisTimeoutError,
        RedisClusterException,
        LinkClosedError,
        OSError,
    ) as error:
        raise ServerUnreachable(message(error)) from error
    except (RedisError, ReplyError) as error:
        raise ServerRefused(message(error)) from error
