"""What to do about an error of the client, for who sees it on a terminal."""

import socket
import ssl
from collections.abc import Iterator

from redis.exceptions import AuthenticationError

from voicefleet.producer.errors import ServerRefused, ServerUnreachable
from voicefleet.wire.greeting import UnfitServerError


def advice(error: BaseException) -> str:
    """A clause that goes on after the error's words; empty where those say it all."""
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
            return "`voicefleet doctor` says which rights this user lacks"
        case _:
            return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, hidden causes too."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
