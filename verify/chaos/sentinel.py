"""A primary, its replica, and the Sentinel that watches both."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self

from verify.chaos.kinds import Topology
from verify.chaos.node import Node
from verify.chaos.servers import until
from voicefleet.embedded_server import HOST, bundled_binary

NAME: Final = "fleet"
_CONFIG: Final = ("repl-diskless-sync-delay 0", "repl-backlog-size 32mb", "repl-timeout 10")


class SentinelPair:
    """Two servers without persistence, and a Sentinel."""

    topology: Topology = "sentinel"

    def __init__(self, nodes: tuple[Node, Node], sentinel: Node) -> None:
        self._nodes = nodes
        self.sentinel = sentinel
        self.url = f"redis+sentinel://{sentinel.address}/{NAME}"

    @classmethod
    @asynccontextmanager
    async def start(cls, directory: Path, binary: Path | str | None = None) -> AsyncGenerator[Self]:
        """Start the three."""
        # The program's name makes it a Sentinel.
        program = directory / "redis-sentinel"
        program.symlink_to(binary or bundled_binary())
        async with (
            Node.start(_CONFIG, binary=binary) as primary,
            Node.start([*_CONFIG, f"replicaof {HOST} {primary.port}"], binary=binary) as replica,
        ):
            watching = [
                f"sentinel monitor {NAME} {HOST} {primary.port} 1",
                f"sentinel down-after-milliseconds {NAME} 1000",
                f"sentinel failover-timeout {NAME} 2000",
            ]
            async with Node.start(watching, binary=program, debug=False) as sentinel:
                # By default it polls every 10 s, which would delay every fault.
                await sentinel.call("SENTINEL", "DEBUG", "INFO-PERIOD", 500, "PUBLISH-PERIOD", 500)
                yield cls((primary, replica), sentinel)

    async def primaries(self) -> list[Node]:
        """The one that Sentinel names."""
        _, port = await self.sentinel.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
        return [node for node in self._nodes if node.port == int(port)]

    async def owner(self, key: str) -> Node:
        """The primary."""
        (primary,) = await self.primaries()
        return primary

    async def replica_of(self, primary: Node) -> Node:
        """The other one."""
        (other,) = (node for node in self._nodes if node is not primary)
        return other

    async def is_whole(self) -> bool:
        """Whether all three agree on the roles and the replica is up to date."""
        (primary,) = await self.primaries()
        replica = await self.replica_of(primary)
        leads = (await primary.info("replication"))["role"] == "master"
        follows = await replica.info("replication")
        seen: dict[str, Any] = await self.sentinel.call("SENTINEL", "MASTER", NAME)
        replicas: list[dict[str, Any]] = await self.sentinel.call("SENTINEL", "REPLICAS", NAME)
        return (
            leads
            and follows["role"] == "slave"
            and follows["master_link_status"] == "up"
            and int(follows["master_port"]) == primary.port
            and _flags(seen) == {"master"}
            and [_flags(one) for one in replicas] == [{"slave"}]
            and replicas[0]["master-link-status"] == "ok"
        )

    async def rejoin(self, node: Node, leader: Node) -> None:
        """Start the dead one anew, empty, behind the other."""
        await node.restart(f"replicaof {HOST} {leader.port}")

    async def promote(self, replica: Node, *, force: bool) -> None:
        """``SENTINEL FAILOVER``, which never waits for the replica."""
        await self.sentinel.call("SENTINEL", "FAILOVER", NAME)

        async def done() -> bool:
            return await self.primaries() == [replica]

        await until(done, "the failover")


def _flags(record: dict[str, Any]) -> set[str]:
    """Flags of a record: redis-py makes them a set here, and leaves them text there."""
    flags = record["flags"]
    return set(flags.split(",") if isinstance(flags, str) else flags)
