"""Where Redis is: URLs of every topology, credentials, certificates, and what errors hide."""

import contextlib
import shutil
import ssl
from io import StringIO
from pathlib import Path

import pytest
import redis as blocking
import rich.console
import trustme
from hypothesis import given
from hypothesis import strategies as st

from voicefleet.embedded_server import HOST, EmbeddedServer, ServerTls
from voicefleet.wire.endpoint import BadUrlError, Endpoint, Location, RedisConfig, parse, resolve

HIDDEN = "hunter2"


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(authority: trustme.CA, tmp_path: Path) -> ServerTls:
    """A certificate for loopback, good for both sides, and the authority that vouches for it."""
    certificate = authority.issue_cert(HOST, "localhost")
    files = ServerTls(tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem")
    authority.cert_pem.write_to_path(files.ca)
    certificate.cert_chain_pems[0].write_to_path(files.cert)
    certificate.private_key_pem.write_to_path(files.key)
    return files


@pytest.mark.parametrize(
    ("url", "topology", "seeds", "service", "db"),
    [
        ("redis://h", "standalone", [("h", 6379)], "", 0),
        ("redis://h:7000/3", "standalone", [("h", 7000)], "", 3),
        ("redis://[::1]:7000", "standalone", [("::1", 7000)], "", 0),
        ("redis+sentinel://h/main", "sentinel", [("h", 26379)], "main", 0),
        ("redis+sentinel://a:1,b,[::1]:3/main/2", "sentinel",
         [("a", 1), ("b", 26379), ("::1", 3)], "main", 2),
        ("redis+cluster://a:1,b", "cluster", [("a", 1), ("b", 6379)], "", 0),
        ("redis+cluster://a/0", "cluster", [("a", 6379)], "", 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("tls", [False, True])
def test_every_topology_with_and_without_tls(
    url: str, topology: str, seeds: list[tuple[str, int]], service: str, db: int, tls: bool
) -> None:
    endpoint = resolve(RedisConfig(url=url.replace("redis", "rediss", 1) if tls else url))
    assert endpoint.topology == topology
    assert endpoint.seeds == tuple(seeds)
    assert (endpoint.service, endpoint.db) == (service, db)
    assert isinstance(endpoint.tls, ssl.SSLContext) is tls
    assert (endpoint.username, endpoint.password) == (None, None)


def test_the_default_is_redis_on_this_host() -> None:
    endpoint = resolve(RedisConfig())
    assert (endpoint.topology, endpoint.seeds) == ("standalone", (("127.0.0.1", 6379),))


@pytest.mark.parametrize(
    ("userinfo", "username", "password"),
    [
        ("user:pw@", "user", "pw"),
        (":pw@", "", "pw"),
        ("user@", "user", ""),
        ("u%40x:p%2Fw%3A%23@", "u@x", "p/w:#"),
        (":p@ss,word@", "", "p@ss,word"),
    ],
)
@pytest.mark.parametrize("rest", ["redis://{}h", "redis+sentinel://{}a,b/main",
                                  "redis+cluster://{}a:1,b:2"])  # fmt: skip
def test_credentials_in_the_url(userinfo: str, username: str, password: str, rest: str) -> None:
    location = parse(rest.format(userinfo))
    assert (location.username, location.password) == (username, password)
    assert not any("@" in host for host, _ in location.seeds)


def test_credentials_beside_the_url(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(" from the file \r\n")
    config = RedisConfig(url="redis://h", username="u", password="p", sentinel_password="s")
    assert (resolve(config).username, resolve(config).password) == ("u", "p")
    assert resolve(config).sentinel_password == "s"
    with_url = RedisConfig(url="redis://x:y@h", username="u", password="p")
    assert (resolve(with_url).username, resolve(with_url).password) == ("x", "y")
    with_file = RedisConfig(url="redis://x:y@h", password="p", password_file=str(file))
    assert (resolve(with_file).username, resolve(with_file).password) == ("x", " from the file ")


def test_a_password_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    with pytest.raises(FileNotFoundError, match="absent"):
        resolve(RedisConfig(password_file=str(absent)))


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "the scheme is not one of redis, rediss, redis+sentinel"),
        ("h:6379", "the scheme is not one of"),
        ("http://h", "the scheme is not one of"),
        ("redis+replica://h", "the scheme is not one of"),
        ("redis+://h", "the scheme is not one of"),
        ("redis://", "the URL names no host"),
        ("redis:///0", "the URL names no host"),
        ("redis://,", "the URL names no host"),
        ("redis://:6379", "a host is not host:port"),
        ("redis://h:port", "a host is not host:port"),
        ("redis://h:65536", "a host is not host:port"),
        ("redis://h:0", "a host is not host:port"),
        ("redis://[::1", "not a URL"),
        ("redis://a,b", "several hosts need redis+sentinel:// or redis+cluster://"),
        ("redis://h/main", "the path is not a database number"),
        ("redis://h/0/1", "the path is not a database number"),
        ("redis://h?db=1", "'?' and '#' have no place in the URL"),
        ("redis+sentinel://h", "a Sentinel URL ends in the primary's name"),
        ("redis+sentinel://h/main/x", "the path is not a database number"),
        ("redis+cluster://h/1", "a Cluster has no databases"),
        # Passwords whose special characters were not escaped.
        (f"redis://:{HIDDEN}/x@h", "in a password write %2F"),
        (f"redis://u:x/{HIDDEN}@h", "in a password write %2F"),
        (f"redis://:1/{HIDDEN}@h", "a host is not host:port"),
        (f"redis://:{HIDDEN}#x@h", "in a password write %3F and %23"),
        (f"redis://:x?{HIDDEN}@h", "in a password write %3F and %23"),
        (f"redis://:[{HIDDEN}@h", "not a URL"),
        (f"redis://:{HIDDEN}\u2100@h", "not a URL"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(
    url: str, complaint: str
) -> None:
    with pytest.raises(BadUrlError) as caught:
        parse(url)
    assert complaint in str(caught.value)
    assert HIDDEN not in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_a_location_or_a_bad_url(text: str) -> None:
    for url in (text, f"redis://{text}", f"redis+sentinel://{text}", f"redis+cluster://a/{text}"):
        with contextlib.suppress(BadUrlError):
            assert parse(url).seeds


@pytest.mark.parametrize("show", [repr, str, "rich"])
def test_no_form_of_it_shows_the_credentials(show: object) -> None:
    config = RedisConfig(
        url=f"redis://u:{HIDDEN}@h:1", password=HIDDEN, sentinel_password=HIDDEN, prefix="p"
    )
    shown: list[Location | Endpoint | RedisConfig] = [config, resolve(config), parse(config.url)]
    for value in shown:
        out = StringIO()
        if callable(show):
            out.write(show(value))
        else:
            rich.console.Console(file=out).print(value)
        assert out.getvalue()
        assert HIDDEN not in out.getvalue()


def test_an_endpoint_is_shown_as_people_would_say_it() -> None:
    assert repr(resolve(RedisConfig(url="redis://u:p@h:1/2"))) == "standalone h:1"
    sentinel = RedisConfig(url="redis+sentinel://a:1,b:2/main")
    assert repr(resolve(sentinel)) == "sentinel a:1,b:2/main"


def test_tls_verifies_by_default(files: ServerTls) -> None:
    context = resolve(RedisConfig(url="rediss://h", tls_ca_file=str(files.ca))).tls
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert len(context.get_ca_certs()) == 1
    trusting = resolve(RedisConfig(url="rediss://h", tls_verify=False)).tls
    assert trusting is not None
    assert trusting.verify_mode is ssl.CERT_NONE
    assert not trusting.check_hostname


def test_a_certificate_that_cannot_be_used_is_an_os_error(files: ServerTls, tmp_path: Path) -> None:
    with pytest.raises(OSError):
        resolve(RedisConfig(url="rediss://h", tls_ca_file=str(tmp_path / "absent.pem")))
    (tmp_path / "torn.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n")
    with pytest.raises(OSError):
        resolve(RedisConfig(url="rediss://h", tls_cert_file=str(tmp_path / "torn.pem")))
    with pytest.raises(OSError):
        resolve(RedisConfig(url="rediss://h", tls_cert_file=str(files.cert)))


def test_the_files_speak_tls_with_a_real_server(files: ServerTls, tmp_path: Path) -> None:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("the bundled Valkey has no TLS, and redis-server is not on the PATH")
    with EmbeddedServer.start_blocking(
        binary=binary, tls=files, password=HIDDEN, config=["tls-auth-clients yes"]
    ) as server:
        assert server.url.startswith("rediss://")
        good = RedisConfig(
            url=server.url,
            tls_ca_file=str(files.ca),
            tls_cert_file=str(files.cert),
            tls_key_file=str(files.key),
        )
        assert ping(resolve(good))
        other = trustme.CA()
        other.cert_pem.write_to_path(tmp_path / "other.pem")
        stranger = RedisConfig(url=server.url, tls_ca_file=str(tmp_path / "other.pem"))
        with pytest.raises(blocking.ConnectionError, match="certificate verify failed"):
            ping(resolve(stranger))


def ping(endpoint: Endpoint) -> bool:
    (host, port), files = endpoint.seeds[0], endpoint.tls_files
    assert files is not None
    with blocking.Redis(
        host=host,
        port=port,
        password=endpoint.password,
        ssl=endpoint.tls is not None,
        ssl_ca_certs=files.ca,
        ssl_certfile=files.cert,
        ssl_keyfile=files.key,
        retry=None,
    ) as client:
        return bool(client.ping())
