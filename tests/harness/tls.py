"""Certificates for a test, and servers that accept TLS alone."""

import shutil
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from voicefleet.embedded_server import HOST, EmbeddedServer, ServerTls

MUTUAL = ("tls-auth-clients yes",)


def binary() -> str:
    """The program of a server with TLS; skips the test where there is none."""
    found = shutil.which("redis-server")
    return found or pytest.skip(
        "the bundled Valkey is built without TLS, and there is no redis-server"
    )


class Authority:
    """A certificate authority with its files in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self._ca = trustme.CA()
        self._directory = directory
        directory.mkdir(parents=True)
        self.file = directory / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def issue(self, name: str, *identities: str, expired: bool = False) -> ServerTls:
        """Issue a certificate and its key, for a server or a client."""
        not_after = datetime.now(UTC) - timedelta(days=1) if expired else None
        issued = self._ca.issue_cert(*(identities or (HOST, "localhost")), not_after=not_after)
        cert, key = (self._directory / f"{name}.{part}.pem" for part in ("cert", "key"))
        issued.private_key_pem.write_to_path(str(key))
        for blob in issued.cert_chain_pems:
            blob.write_to_path(str(cert), append=True)
        return ServerTls(ca=self.file, cert=cert, key=key)


def settings(files: ServerTls) -> dict[str, str]:
    """The ``redis`` settings of a client with these files."""
    return {
        "tls_ca_file": str(files.ca),
        "tls_cert_file": str(files.cert),
        "tls_key_file": str(files.key),
    }


def access(files: ServerTls) -> dict[str, Any]:
    """The same, as options of redis-py."""
    return {
        "ssl": True,
        "ssl_ca_certs": str(files.ca),
        "ssl_certfile": str(files.cert),
        "ssl_keyfile": str(files.key),
    }


def context(files: ServerTls) -> ssl.SSLContext:
    """The same, as an SSL context."""
    made = ssl.create_default_context(cafile=str(files.ca))
    made.load_cert_chain(files.cert, files.key)
    return made


@asynccontextmanager
async def mutual(files: ServerTls) -> AsyncGenerator[EmbeddedServer]:
    """A server that requires a certificate of each client."""
    async with EmbeddedServer.start(binary=binary(), tls=files, config=MUTUAL) as server:
        yield server
