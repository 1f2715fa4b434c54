"""Fixtures of every test: servers, a client, and keys of the test's own.

A test that asks for ``redis_url`` runs on the bundled Valkey, or on what ``--backend`` names. One
marked ``matrix`` runs on every Redis at hand. Servers are shared by all tests; ``prefix`` is not:
it is the test's own, and what is left under it without a TTL fails the test.
"""

import logging
import os
import secrets
from collections.abc import AsyncGenerator, Generator

import pytest
import structlog
from hypothesis import settings
from redis.asyncio import Redis, from_url
from redis.asyncio.cluster import ClusterNode, RedisCluster

from tests.harness.fleet import Orchestrator
from tests.harness.key_leaks import KeyLeaks
from tests.harness.servers import BACKENDS, Servers, UnavailableError, at_hand
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
        choices=BACKENDS,
        default="valkey",
        help="the Redis that tests run against (default: the bundled Valkey)",
    )


def pytest_report_header() -> str:
    return f"redis backends at hand: {', '.join(at_hand())}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames and metafunc.definition.get_closest_marker("matrix"):
        metafunc.parametrize("backend", at_hand(), indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and "cluster_url" in item.fixturenames:
            item.add_marker(pytest.mark.cluster)


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
    try:
        return servers.url(backend)
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def cluster_url(servers: Servers) -> str:
    """The URL of a Cluster of three nodes on loopback."""
    return servers.cluster().url


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
