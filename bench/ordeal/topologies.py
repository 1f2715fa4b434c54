"""The topologies there are, by name."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from bench.ordeal.cluster import Cluster
from bench.ordeal.kinds import Topology
from bench.ordeal.sentinel import SentinelPair
from bench.ordeal.servers import Servers, settled
from bench.ordeal.standalone import Standalone

_KINDS: Final[dict[Topology, Any]] = {
    "standalone": Standalone,
    "sentinel": SentinelPair,
    "cluster": Cluster,
}


@asynccontextmanager
async def start(
    topology: Topology, directory: Path, binary: Path | str | None = None
) -> AsyncGenerator[Servers]:
    """Start the servers of a topology, whole when given; all end with the block.

    Args:
        topology: Which.
        directory: Where those that keep data keep it.
        binary: The server to run. Default: the bundled Valkey.
    """
    async with _KINDS[topology].start(directory, binary) as servers:
        await settled(servers)
        yield servers
