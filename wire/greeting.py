"""The first words to a server: whether it speaks what we speak.

A client that is given the wrong scheme hears nothing, and tries again and again. Asked like this,
the server shows in a moment what is wrong, and the error says what to do.
"""

import asyncio
import ssl
from typing import Final

from redis.exceptions import AuthenticationError

from voicefleet.wire.endpoint import Endpoint
from voicefleet.wire.link import LinkClosedError

PATIENCE_S: Final = 1.0
"""A server that says nothing for so long is asked whether it speaks the other way."""

_TLS_ALERT: Final = b"\x15\x03"
_REPLIES: Final = (b"+", b"-", b"%", b"*")


class UnfitServerError(LinkClosedError):
    """Somebody answers, and cannot serve us: TLS where we speak none, or the reverse, or RESP2."""


async def greet(endpoint: Endpoint) -> None:
    """Ask the first server that can be reached what it speaks. Who says nothing passes.

    Raises:
        UnfitServerError: The URL's scheme is wrong, or the server too old, or no Redis.
        redis.exceptions.AuthenticationError: It wants credentials, and there are none.
    """
    for address in endpoint.seeds:
        try:
            said = await _hello(address, endpoint.tls)
        except ssl.SSLCertVerificationError:
            return  # it does speak TLS; the client says what is wrong with its certificate
        except (ssl.SSLError, TimeoutError):
            if endpoint.tls is not None and await _speaks_plainly(address):
                raise UnfitServerError(
                    f"{endpoint!r}: the port does not speak TLS: write redis://, not rediss://"
                ) from None
            return
        except OSError:
            continue  # it is down, and the client finds that out as quickly
        _judge(said, endpoint, speaks_tls=not said and await _speaks_tls(address))
        return


def _judge(said: bytes, endpoint: Endpoint, *, speaks_tls: bool) -> None:
    if endpoint.tls is None and (speaks_tls or said.startswith(_TLS_ALERT)):
        raise UnfitServerError(
            f"{endpoint!r}: the port speaks TLS alone: write rediss://, not redis://"
        )
    if said and not said.startswith(_REPLIES):
        raise UnfitServerError(f"{endpoint!r}: what listens on the port is no Redis")
    if endpoint.topology == "sentinel":
        return  # Sentinels have protocols and credentials of their own
    if said.startswith((b"-ERR unknown command", b"-NOPROTO")):
        raise UnfitServerError(
            f"{endpoint!r}: the server does not know RESP3 (HELLO 3): it must be Redis 7, "
            "Valkey 8 or newer, and not have the command renamed"
        )
    if said.startswith(b"-NOAUTH") and endpoint.password is None:
        raise AuthenticationError("the server asks for a password, and none is given")


async def _hello(address: tuple[str, int], tls: ssl.SSLContext | None) -> bytes:
    """What the server answers to HELLO; nothing where it closes the connection instead."""
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection(
            *address, ssl=tls, server_hostname=address[0] if tls else None
        )
        try:
            writer.write(b"HELLO 3\r\n")
            return await reader.read(64)
        except ConnectionResetError:
            return b""
        finally:
            writer.transport.abort()


async def _speaks_plainly(address: tuple[str, int]) -> bool:
    try:
        return (await _hello(address, None)).startswith(_REPLIES)
    except (OSError, TimeoutError):
        return False


async def _speaks_tls(address: tuple[str, int]) -> bool:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        await _hello(address, context)
    except ssl.SSLError as error:
        return "WRONG_VERSION" not in str(error) and "EOF" not in str(error)
    except (OSError, TimeoutError):
        return False
    return True
