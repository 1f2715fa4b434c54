"""Where Redis is: URLs of every topology, and credentials that do not belong in a URL.

=============================================  ============================================
URL                                            topology
=============================================  ============================================
``redis://[user:password@]host:port[/db]``     standalone
``rediss://...``                               the same over TLS
``redis+sentinel://h1:p1,h2:p2/name[/db]``     the primary that Sentinel calls ``name``
``rediss+sentinel://...``                      the same, servers and Sentinels over TLS
``redis+cluster://h1:p1,h2:p2``                Cluster, seeds in any number
``rediss+cluster://...``                       the same over TLS
=============================================  ============================================
"""

import re
import ssl
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Meta

Topology = Literal["standalone", "sentinel", "cluster"]

TOPOLOGIES: dict[str, Topology] = {"": "standalone", "sentinel": "sentinel", "cluster": "cluster"}
DEFAULT_PORTS: dict[Topology, int] = {"standalone": 6379, "cluster": 6379, "sentinel": 26379}

Timeout = Annotated[float, Meta(gt=0)]

# The marks of ``worker.section``, which this package must not import.
Secret = Annotated[str, Meta(extra={"secret": True})]
FilePath = Annotated[str, Meta(extra={"path": True})]

_DATABASE = re.compile(r"[0-9]{1,9}")


class RedisConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``redis`` section. A password file wins over the URL, the URL over ``password``.

    ``prefix`` begins every key; it holds no braces, which would move the keys' hash tags.
    """

    url: Secret = "redis://127.0.0.1:6379"
    prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:\-]{1,64}\Z")] = "tts"
    username: str = ""
    password: Secret = ""
    password_file: FilePath = ""
    sentinel_username: str = ""
    sentinel_password: Secret = ""
    tls_ca_file: FilePath = ""
    tls_cert_file: FilePath = ""
    tls_key_file: FilePath = ""
    tls_verify: bool = True
    connect_timeout_s: Timeout = 3.0
    timeout_s: Timeout = 3.0

    def __repr__(self) -> str:
        """Without the credentials, which the URL may hold too."""
        return f"RedisConfig(prefix={self.prefix!r}, ...)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """The same for rich, which prints locals in its tracebacks."""
        return [("prefix", self.prefix)]


class BadUrlError(ValueError):
    """A Redis URL with an unknown scheme, or without what its topology needs.

    The message quotes nothing that may be part of a password.
    """


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a URL."""

    topology: Topology
    seeds: tuple[tuple[str, int], ...]
    tls: bool
    db: int
    service: str
    username: str
    password: str

    def __repr__(self) -> str:
        """Without the credentials."""
        return f"Location({self.topology}, {self.seeds})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """The same for rich, which prints locals in its tracebacks."""
        return [("topology", self.topology), ("seeds", self.seeds)]


class TlsFiles(msgspec.Struct, frozen=True):
    """The files the TLS context was made from, for clients that make their own context."""

    ca: str | None
    cert: str | None
    key: str | None
    verify: bool


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One Redis, resolved: its topology, seeds, credentials and TLS context."""

    topology: Topology
    seeds: tuple[tuple[str, int], ...]
    db: int = 0
    service: str = ""
    username: str | None = None
    password: str | None = None
    sentinel_username: str | None = None
    sentinel_password: str | None = None
    tls: ssl.SSLContext | None = None
    tls_files: TlsFiles | None = None
    connect_timeout_s: float = 3.0
    timeout_s: float = 3.0

    def __repr__(self) -> str:
        """Without the credentials: this is what logs and errors show."""
        hosts = ",".join(f"{host}:{port}" for host, port in self.seeds)
        return f"{self.topology} {hosts}{'/' + self.service if self.service else ''}"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """The same for rich, which prints locals in its tracebacks."""
        return [("topology", self.topology), ("seeds", self.seeds), ("service", self.service)]


def parse(url: str) -> Location:
    """Read a URL.

    Raises:
        BadUrlError: It cannot be used; the message says what to write instead.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise BadUrlError("not a URL: a bracket or a character of the host is wrong") from None
    scheme, plus, kind = parts.scheme.partition("+")
    if scheme not in ("redis", "rediss") or (plus and not kind) or kind not in TOPOLOGIES:
        raise BadUrlError(
            "the scheme is not one of redis, rediss, redis+sentinel, rediss+sentinel, "
            "redis+cluster, rediss+cluster"
        )
    topology = TOPOLOGIES[kind]
    if parts.query or parts.fragment:
        raise BadUrlError("'?' and '#' have no place in the URL; in a password write %3F and %23")
    userinfo, _, hosts = parts.netloc.rpartition("@")
    username, _, password = userinfo.partition(":")
    seeds = tuple(_seed(host, DEFAULT_PORTS[topology]) for host in hosts.split(",") if host)
    if not seeds:
        raise BadUrlError("the URL names no host")
    if topology == "standalone" and len(seeds) > 1:
        raise BadUrlError("several hosts need redis+sentinel:// or redis+cluster://")
    path = [unquote(part) for part in parts.path.split("/") if part]
    service = ""
    if topology == "sentinel":
        if not path:
            raise BadUrlError("a Sentinel URL ends in the primary's name: redis+sentinel://h/name")
        service = path.pop(0)
    if path and not (len(path) == 1 and _DATABASE.fullmatch(path[0])):
        raise BadUrlError("the path is not a database number; in a password write %2F for '/'")
    db = int(path[0]) if path else 0
    if db and topology == "cluster":
        raise BadUrlError("a Cluster has no databases: leave the path out")
    return Location(
        topology=topology,
        seeds=seeds,
        tls=scheme == "rediss",
        db=db,
        service=service,
        username=unquote(username),
        password=unquote(password),
    )


def resolve(config: RedisConfig) -> Endpoint:
    """Read a URL and the settings beside it.

    Raises:
        BadUrlError: The URL cannot be used; the message says what to write instead.
        OSError: The password file or a certificate cannot be read.
    """
    location = parse(config.url)
    password = location.password or config.password
    if config.password_file:
        with _named("redis.password_file", config.password_file):
            password = Path(config.password_file).read_text(encoding="utf-8").rstrip("\r\n")
    return Endpoint(
        topology=location.topology,
        seeds=location.seeds,
        db=location.db,
        service=location.service,
        username=location.username or config.username or None,
        password=password or None,
        sentinel_username=config.sentinel_username or None,
        sentinel_password=config.sentinel_password or None,
        tls=_tls(config) if location.tls else None,
        tls_files=TlsFiles(
            ca=config.tls_ca_file or None,
            cert=config.tls_cert_file or None,
            key=config.tls_key_file or None,
            verify=config.tls_verify,
        ),
        connect_timeout_s=config.connect_timeout_s,
        timeout_s=config.timeout_s,
    )


def _seed(host: str, default_port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{host}")
        name, port = parts.hostname, parts.port
    except ValueError:
        name, port = None, None
    if not name or port == 0:
        # Not quoted: with a bare '/' in the password, this is a part of the password.
        raise BadUrlError("a host is not host:port; in a password write %2F for '/'")
    return name, port or default_port


def _tls(config: RedisConfig) -> ssl.SSLContext:
    with _named("redis.tls_ca_file", config.tls_ca_file):
        context = ssl.create_default_context(cafile=config.tls_ca_file or None)
    if not config.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if config.tls_cert_file:
        files = f"{config.tls_cert_file} {config.tls_key_file}".rstrip()
        with _named("redis.tls_cert_file, tls_key_file", files):
            context.load_cert_chain(config.tls_cert_file, config.tls_key_file or None)
    return context


@contextmanager
def _named(setting: str, value: str) -> Generator[None]:
    """Make an error about a file name the setting and the file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"{setting}: {reason}", value) from None
