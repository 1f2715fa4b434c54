"""The first exchange with a server: does it speak RESP3, and TLS where the URL says so?

With the wrong scheme in the URL a client would get no answer and retry for ever. This check finds
out within a second what is wrong, and its error says what to write instead.
"""

import asyncio
import ssl
from typing import Final

from redis.exceptions import AuthenticationError

from voicefleet.wire.endpoint import Endpoint
from voicefleet.wire.link import LinkClosedError

PATIENCE_S: Final = 1.0
"""A server that is silent for so long is tried with TLS instead of without, or the reverse."""

_TLS_ALERT: Final = b"\x15\x03"
_REPLIES: Final = (b"+", b"-", b"%", b"*")


class UnfitServerError(LinkClosedError):
    """The server answers but cannot be used: TLS against plain, no RESP3, or not Redis at all."""


async def greet(endpoint: Endpoint) -> None:
    """Check the first server that can be reached. One that stays silent passes.

    Raises:
        UnfitServerError: The URL's scheme is wrong, or the server is too old, or is not Redis.
        redis.exceptions.AuthenticationError: It asks for credentials, and none are given.
    """
    for address in endpoint.seeds:
        try:
            reply = await _hello(address, endpoint.tls)
        except ssl.SSLCertVerificationError:
            return  # it speaks TLS; redis-py reports what is wrong with the certificate
        except (ssl.SSLError, TimeoutError):
            if endpoint.tls is not None and await _speaks_plainly(address):
                raise UnfitServerError(
                    f"{endpoint!r}: the port does not speak TLS: write redis://, not rediss://"
                ) from None
            return
        except OSError:
            continue  # it is down; redis-py finds that out as quickly
        _judge(reply, endpoint, speaks_tls=not reply and await _speaks_tls(address))
        return


def _judge(reply: bytes, endpoint: Endpoint, *, speaks_tls: bool) -> None:
    if endpoint.tls is None and (speaks_tls or reply.startswith(_TLS_ALERT)):
        raise UnfitServerError(
            f"{endpoint!r}: the port speaks only TLS: write rediss://, not redis://"
        )
    if reply and not reply.startswith(_REPLIES):
        raise UnfitServerError(f"{endpoint!r}: the server on this port is not Redis")
    if endpoint.topology == "sentinel":
        return  # Sentinels have protocols and credentials of their own
    if reply.startswith((b"-ERR unknown command", b"-NOPROTO")):
        raise UnfitServerError(
            f"{endpoint!r}: the server does not know RESP3 (HELLO 3): it must be Redis 7, "
            "Valkey 8 or newer, and not have the command renamed"
        )
    if reply.startswith(b"-NOAUTH") and endpoint.password is None:
        raise AuthenticationError("the server asks for a password, and none is given")


async def _hello(address: tuple[str, int], tls: ssl.SSLContext | None) -> bytes:
    """The server's answer to HELLO 3; empty if it closes the connection instead."""
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
