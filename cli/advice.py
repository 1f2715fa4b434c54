"""What the user of a command can do about an error of the client."""

import socket
import ssl
from collections.abc import Iterator

from redis.exceptions import AuthenticationError

from voicefleet.producer.errors import ServerRefused, ServerUnreachable
from voicefleet.wire.greeting import UnfitServerError


def advice(error: BaseException) -> str:
    """A clause to append to the error's message; empty where the message says enough."""
    causes = list(_causes(error))
    for cause in causes:
        match cause:
            case UnfitServerError():
                return ""
            case AuthenticationError():
                return (
                    "say who you are with VOICEFLEET_REDIS_USERNAME and VOICEFLEET_REDIS_PASSWORD, "
                    "or VOICEFLEET_REDIS_PASSWORD_FILE"
                )
            case ssl.SSLCertVerificationError():
                return "VOICEFLEET_REDIS_TLS_CA_FILE names the authority that signed for it"
            case socket.gaierror():
                return "is the host's name in --redis-url or VOICEFLEET_REDIS_URL right?"
            case _:
                pass
    match error:
        case ServerUnreachable():
            return (
                "is it running? `voicefleet up` starts one; "
                "--redis-url or VOICEFLEET_REDIS_URL says where it is"
            )
        case ServerRefused() if "NOPERM" in str(error) or "no permissions" in str(error):
            return "`voicefleet doctor` says which permissions this user lacks"
        case _:
            return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and its chain of causes, or of contexts where no cause was given."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
