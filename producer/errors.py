"""What can go wrong, as types. Every error of this package is a ``VoiceFleetError``.

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
    """Redis does not answer. What was sent last may or may not have happened."""


class ServerRefused(VoiceFleetError):
    """Redis answered with an error: credentials, rights, or a key of another type."""


class UnknownModel(VoiceFleetError):
    """No worker serves this model now. ``served`` are the models that are."""

    def __init__(self, model: str, served: tuple[str, ...]) -> None:
        names = f"served now: {', '.join(served)}" if served else "no model is served now"
        super().__init__(f"no worker serves {model!r}; {names}")
        self.model = model
        self.served = served


class StreamGap(VoiceFleetError):
    """Entries between ``after`` and ``found`` are gone: the stream keeps a bounded window.

    It happens to a reader that falls behind by more than the worker's ``audio_window_s``.
    """

    def __init__(self, after: EntryId, found: EntryId) -> None:
        super().__init__(f"entries between {after} and {found} were trimmed before they were read")
        self.after = after
        self.found = found


class ForeignEntry(VoiceFleetError):
    """The audio stream holds an entry that the protocol does not know."""


class TurnEnded(VoiceFleetError):
    """Text was written to a turn that is over. ``end`` says how it ended."""

    def __init__(self, end: End) -> None:
        super().__init__(f"turn {end.request!r} is over: {end.reason}")
        self.end = end


class TurnError(VoiceFleetError):
    """A turn that was not spoken as asked. ``end`` is its last entry."""

    def __init__(self, end: End) -> None:
        super().__init__(f"turn {end.request!r} {end.reason}: {end.error or 'no reason was given'}")
        self.end = end

    @property
    def error(self) -> str:
        """The worker's words, as in the ``error`` field of the end entry."""
        return self.end.error or ""


class TurnRejected(TurnError):
    """The fleet found the request invalid, or the session's queue full."""


class TurnExpired(TurnError):
    """The turn had not started by its deadline, and was not spoken."""


class TurnFailed(TurnError):
    """The fleet could not speak the turn, or not to its end."""


def raise_for_end(end: End) -> None:
    """Raise what ``end`` stands for; completed, stopped and interrupted turns raise nothing."""
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
    """Turn what the Redis side raises into ``ServerUnreachable`` and ``ServerRefused``."""

    def message(error: Exception) -> str:
        said = str(error) or type(error).__name__
        return said if said.startswith(repr(endpoint)) else f"{endpoint!r}: {said}"

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
