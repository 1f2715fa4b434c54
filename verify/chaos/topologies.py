"""The topologies there are, by name."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from verify.chaos.cluster import Cluster
from verify.chaos.kinds import Topology
from verify.chaos.sentinel import SentinelPair
from verify.chaos.servers import Servers, settled
from verify.chaos.standalone import Standalone

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
