"""Servers with the users of ``deploy/redis``, each with a password of its own."""

import hashlib
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from redis.asyncio import from_url

from tests.harness.fleet import ROOT
from voicefleet.embedded_server import EmbeddedServer
from voicefleet.wire.endpoint import RedisConfig, resolve
from voicefleet.wire.link import Link

FOLDER = ROOT / "deploy" / "redis"
ADMIN = "admin"


def password(user: str) -> str:
    """The password of a user in these tests."""
    return f"{user}: long, and / hard to @ guess"


def write_acl(directory: Path, *files: str) -> Path:
    """Merge ACL files into one, set each user's password, and add an administrator."""
    path = directory / "users.acl"
    lines = [line for file in files for line in (FOLDER / file).read_text().splitlines()]
    digest = hashlib.sha256(password(ADMIN).encode()).hexdigest()
    path.write_text("\n".join([*lines, f"user {ADMIN} on #{digest} ~* &* +@all"]) + "\n")
    for line in lines:
        name = line.split()[1]
        if name != "default":
            done = set_password(path, name, password(name))
            assert done.returncode == 0, done.stderr
    return path


def set_password(file: Path, user: str, secret: str) -> "subprocess.CompletedProcess[str]":
    """Run ``deploy/redis/set-password``."""
    command = [FOLDER / "set-password", file, user]
    return subprocess.run(
        command, input=f"{secret}\n", capture_output=True, text=True, timeout=20, check=False
    )


def with_user(url: str, user: str) -> str:
    """A server's URL with a user's credentials."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{user}:{quote(password(user), safe='')}@{rest.rpartition('@')[2]}"


class Guarded(msgspec.Struct, frozen=True):
    """A server with users; ``where`` is its URL without credentials."""

    where: str

    @property
    def port(self) -> int:
        return int(self.where.rpartition(":")[2])

    def url(self, user: str) -> str:
        return with_user(self.where, user)

    @asynccontextmanager
    async def client(self, user: str, **options: Any) -> AsyncGenerator[Any]:
        """A raw client with a user's credentials; untyped, as half of its commands are."""
        async with from_url(self.url(user), **options) as client:
            yield client

    @asynccontextmanager
    async def link(self, url: str) -> AsyncGenerator[Link]:
        """A bare connection without retries. Raises as ``Link.open``."""
        endpoint = resolve(RedisConfig(url=url))
        link = await Link.open(endpoint.seeds[0], endpoint)
        try:
            yield link
        finally:
            link.close()

    async def refusals(self) -> list[str]:
        """ACL LOG as lines ``user reason context object``."""
        async with self.client(ADMIN) as admin:
            return refusals(await admin.acl_log())


def refusals(log: list[dict[Any, Any]]) -> list[str]:
    """The entries of ACL LOG, one line each.

    Without ``CLIENT SETINFO``, by which redis-py introduces itself where it may: Redis 7.0 does not
    know it and refuses a file that grants it.
    """
    fields = ("username", "reason", "context", "object")
    found = [
        " ".join(_text(entry.get(field, entry.get(field.encode()))) for field in fields)
        for entry in log
    ]
    return [line for line in found if not line.endswith("client|setinfo")]


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@asynccontextmanager
async def guarded(
    directory: Path,
    *,
    binary: str | None = None,
    files: tuple[str, ...] = ("users.acl",),
    config: tuple[str, ...] = (),
) -> AsyncGenerator[Guarded]:
    """A server with the users of ``files``."""
    lines = [f"aclfile {write_acl(directory, *files)}", *config]
    async with EmbeddedServer.start(binary=binary, config=lines) as server:
        yield Guarded(server.url)
