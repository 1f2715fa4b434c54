"""Fixtures of every test: servers, a client, and keys of the test's own.

A test that asks for ``redis_url`` runs on the bundled Valkey, or on what ``--backend`` names. One
marked ``matrix`` runs on every Redis that ``servers.matrix`` names. All tests share the servers.
``prefix`` is for one test alone, and fails it if keys without a TTL are left under it.
"""

import logging
import os
import secrets
import shlex
import shutil
import sys
from collections.abc import AsyncGenerator, Generator

import pytest
import structlog
from hypothesis import settings
from redis.asyncio import Redis, from_url
from redis.asyncio.cluster import ClusterNode, RedisCluster

from tests.harness.fleet import Orchestrator
from tests.harness.key_leaks import KeyLeaks
from tests.harness.servers import BINARIES, Servers, UnavailableError, matrix
from voicefleet.wire.endpoint import RedisConfig, resolve

settings.register_profile("default", deadline=None, max_examples=50)
# Other examples in each run, and what it takes to repeat a failure in the log.
settings.register_profile(
    "ci", deadline=None, max_examples=200, derandomize=False, database=None, print_blob=True
)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(autouse=True)
def untouched_logging() -> Generator[None]:
    """Undo what a test does to the process's logging: its captured streams are closed after it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        default="valkey",
        help="the Redis that tests run against: valkey (the bundled one, the default), redis, "
        "external, or an image such as redis:8",
    )
    parser.addoption(
        "--without-torch",
        action="store_true",
        help="run as if torch were not installed: tests that need it are skipped",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--without-torch"):
        sys.modules["torch"] = None  # type: ignore[assignment]  # importing it fails now


def pytest_report_header() -> str:
    return f"matrix: {', '.join(matrix())}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames and metafunc.definition.get_closest_marker("matrix"):
        backends = matrix()
        if "binary" in metafunc.fixturenames:
            backends = [name for name in backends if name in BINARIES]
        metafunc.parametrize("backend", backends, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and "cluster_url" in item.fixturenames:
            item.add_marker(pytest.mark.cluster)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how to run each failed test alone."""
    stats = terminalreporter.stats
    failed = dict.fromkeys(
        report.nodeid for kind in ("failed", "error") for report in stats.get(kind, [])
    )
    if failed:
        terminalreporter.section("to run a failed test alone")
        python = os.path.relpath(sys.executable)
        for node in list(failed)[:20]:
            terminalreporter.line(f"{python} -m pytest {shlex.quote(node)}")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def servers() -> Generator[Servers]:
    """Every server of this run, started when it is first asked for."""
    with Servers() as servers:
        yield servers


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """The name of the Redis this test runs against."""
    return str(getattr(request, "param", None) or request.config.getoption("--backend"))


@pytest.fixture
def redis_url(backend: str, servers: Servers) -> str:
    """The URL of the Redis this test runs against."""
    return _url_of(backend, servers)


@pytest.fixture(scope="session")
def module_url(request: pytest.FixtureRequest, servers: Servers) -> str:
    """The URL of the Redis that ``--backend`` names, for fixtures that outlive a test."""
    return _url_of(str(request.config.getoption("--backend")), servers)


def _url_of(backend: str, servers: Servers) -> str:
    try:
        return servers.url(backend)
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture
def binary(backend: str) -> str | None:
    """The program of this backend, for tests that start servers of their own; None: the bundled."""
    if backend not in BINARIES:
        pytest.skip(f"{backend} is no program on this machine")
    if backend == "valkey":
        return None
    return shutil.which("redis-server") or pytest.skip("redis-server is not on the PATH")


@pytest.fixture(scope="session")
def cluster_url(servers: Servers) -> str:
    """The URL of a Cluster of three nodes on loopback."""
    return servers.cluster_url()


@pytest.fixture
def leaks(request: pytest.FixtureRequest) -> Generator[KeyLeaks]:
    """The check of the keys that the test leaves behind: ``leaks.allow(key)``."""
    leaks = KeyLeaks(f"t{secrets.token_hex(5)}")
    for fixture in ("redis_url", "cluster_url"):
        if fixture in request.fixturenames:
            leaks.watch(request.getfixturevalue(fixture))
    yield leaks
    left = leaks.sweep()
    if left:
        pytest.fail("left without a TTL: " + ", ".join(left), pytrace=False)


@pytest.fixture
def prefix(leaks: KeyLeaks) -> str:
    """A key prefix of this test's own (``redis.prefix``); its keys are deleted afterwards."""
    return leaks.prefix


@pytest.fixture
async def redis(redis_url: str) -> AsyncGenerator[Redis]:
    """A raw client of ``redis_url``, bytes in and out."""
    async with from_url(redis_url) as client:
        yield client


@pytest.fixture
def fleet(redis: Redis, prefix: str) -> Orchestrator:
    """An orchestrator of raw commands on ``redis_url``, with keys of the test's own."""
    return Orchestrator(redis, prefix)


@pytest.fixture
async def cluster(cluster_url: str) -> AsyncGenerator[RedisCluster]:
    """A raw client of ``cluster_url``, bytes in and out."""
    seeds = resolve(RedisConfig(url=cluster_url)).seeds
    async with RedisCluster(startup_nodes=[ClusterNode(*seed) for seed in seeds]) as client:
        yield client
