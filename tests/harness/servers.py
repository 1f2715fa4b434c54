"""The Redis servers that tests run against, each started once, when the first test asks.

============ ===================================================================
backend      what it is
============ ===================================================================
valkey       the bundled Valkey; always there
redis        the ``redis-server`` on the PATH (Debian's, say)
external     ``VOICEFLEET_TEST_REDIS_URL``; only keys under the tests' own prefixes are touched
another name an image, such as ``redis:8``, that a container runs where Docker answers
============ ===================================================================

Tests marked ``matrix`` run on the first three, as far as they are there, and on the images of
``VOICEFLEET_TEST_IMAGES`` (separated by blanks; default: ``IMAGES``).
"""

import os
import shutil
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Final, Self

from docker.errors import DockerException
from testcontainers.community.redis import RedisContainer
from testcontainers.core.config import testcontainers_config

from tests.harness.topologies import cluster_url, start_cluster
from voicefleet.embedded_server import EmbeddedServer

BINARIES: Final = ("valkey", "redis")
"""The backends that are programs on this machine."""

IMAGES: Final = ("redis:7-bookworm", "valkey/valkey:8")


class UnavailableError(Exception):
    """The backend is not available here; the message says why."""


def matrix() -> list[str]:
    """The backends that a test marked ``matrix`` runs on."""
    found = ["valkey"]
    if shutil.which("redis-server"):
        found.append("redis")
    if "VOICEFLEET_TEST_REDIS_URL" in os.environ:
        found.append("external")
    images = os.environ.get("VOICEFLEET_TEST_IMAGES")
    return found + (list(IMAGES) if images is None else images.split())


class Servers:
    """The servers of one test run: ``with Servers() as servers: servers.url("valkey")``."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._urls: dict[str, str | UnavailableError] = {}
        self._cluster = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def url(self, backend: str) -> str:
        """The backend's URL.

        Raises:
            UnavailableError: It is not to be had here.
        """
        if backend not in self._urls:
            try:
                self._urls[backend] = self._start(backend)
            except UnavailableError as error:
                self._urls[backend] = error
        found = self._urls[backend]
        if isinstance(found, UnavailableError):
            raise found
        return found

    def cluster_url(self) -> str:
        """The URL of a Cluster of three nodes that all tests share."""
        if not self._cluster:
            self._cluster = cluster_url(self._stack.enter_context(start_cluster()))
        return self._cluster

    def _start(self, backend: str) -> str:
        if backend == "external":
            url = os.environ.get("VOICEFLEET_TEST_REDIS_URL")
            if not url:
                raise UnavailableError("VOICEFLEET_TEST_REDIS_URL is not set")
            return url
        if backend == "valkey":
            return self._stack.enter_context(EmbeddedServer.start_blocking()).url
        if backend == "redis":
            binary = shutil.which("redis-server")
            if binary is None:
                raise UnavailableError("redis-server is not on the PATH")
            return self._stack.enter_context(EmbeddedServer.start_blocking(binary=binary)).url
        return self._stack.enter_context(_container(backend))


@contextmanager
def _container(image: str) -> Generator[str]:
    # Its reaper, an image of its own, is not needed: the block below removes the container.
    testcontainers_config.ryuk_disabled = True
    with ExitStack() as stack:
        try:
            container = stack.enter_context(RedisContainer(image))
        except DockerException as error:
            raise UnavailableError(f"no container of {image}: {error}") from error
        host, port = container.get_container_host_ip(), container.get_exposed_port(container.port)
        yield f"redis://{host}:{port}"
