"""A Cluster of three primaries, each with a replica that takes over by itself."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, Self, cast

import msgspec
from redis.exceptions import RedisError

from verify.chaos.kinds import Topology
from verify.chaos.node import Node
from verify.chaos.servers import until
from voicefleet.embedded_server import HOST

PRIMARIES: Final = 3
SLOTS: Final = 16384
NODE_TIMEOUT_MS: Final = 1500
_CONFIG: Final = (
    f"cluster-node-timeout {NODE_TIMEOUT_MS}",
    "cluster-replica-validity-factor 0",
    "repl-diskless-sync-delay 0",
    "repl-backlog-size 32mb",
)


class Member(msgspec.Struct, frozen=True):
    """A line of ``CLUSTER NODES``. ``slots`` are ranges, ends included."""

    id: str
    port: int
    flags: frozenset[str]
    leader: str
    connected: bool
    slots: tuple[tuple[int, int], ...]


class Cluster:
    """Six servers that keep nothing but their place in the Cluster."""

    topology: Topology = "cluster"

    def __init__(self, nodes: tuple[Node, ...]) -> None:
        self.nodes = nodes
        self.url = "redis+cluster://" + ",".join(node.address for node in nodes)

    @classmethod
    @asynccontextmanager
    async def start(cls, directory: Path, binary: Path | str | None = None) -> AsyncGenerator[Self]:
        """Start the six and make them one."""
        async with AsyncExitStack() as stack:
            nodes = [
                await stack.enter_async_context(Node.start(_CONFIG, binary=binary, cluster=True))
                for _ in range(2 * PRIMARIES)
            ]
            cluster = cls(tuple(nodes))
            await cluster._join()
            yield cluster

    async def members(self) -> list[Member]:
        """The Cluster as the first that answers sees it."""
        for node in self.nodes:
            try:
                return await self._members_seen_by(node)
            except (RedisError, OSError):
                continue
        raise ConnectionError("no node answers")

    async def primaries(self) -> list[Node]:
        """Those that have slots."""
        leading = {
            one.port
            for one in await self.members()
            if one.slots and "master" in one.flags and "fail" not in one.flags
        }
        return [node for node in self.nodes if node.port in leading]

    async def owner(self, key: str) -> Node:
        """The primary of the key's slot."""
        slot = await self.slot(key)
        for one in await self.members():
            if any(first <= slot <= last for first, last in one.slots):
                return self._node(one.port)
        raise LookupError(f"nobody has slot {slot}")

    async def slot(self, key: str) -> int:
        """The key's slot."""
        for node in self.nodes:
            try:
                return int(await node.call("CLUSTER", "KEYSLOT", key))
            except (RedisError, OSError):
                continue
        raise ConnectionError("no node answers")

    async def id_of(self, node: Node) -> str:
        """The node's id."""
        return str(await node.call("CLUSTER", "MYID"))

    async def replica_of(self, primary: Node) -> Node:
        """The primary's replica."""
        members = await self.members()
        (leader,) = (one.id for one in members if one.port == primary.port)
        for one in members:
            if one.leader == leader and "fail" not in one.flags:
                return self._node(one.port)
        raise LookupError(f"{primary.address} has no replica")

    async def is_whole(self) -> bool:
        """Whether all six see the same, every slot is served, every replica is up to date."""
        wanted = {"cluster_state": "ok", "cluster_slots_ok": str(SLOTS), "cluster_size": "3"}
        for node in self.nodes:
            said = await node.call("CLUSTER", "INFO")
            facts = cast(dict[str, str], said) if isinstance(said, dict) else _pairs(str(said))
            if not wanted.items() <= facts.items():
                return False
            follows = await node.info("replication")
            if follows["role"] == "slave" and follows["master_link_status"] != "up":
                return False
            if follows["role"] == "master" and not follows["connected_slaves"]:
                return False
            members = await self._members_seen_by(node)
            if any(one.flags & {"fail", "fail?", "handshake", "noaddr"} for one in members):
                return False
            leaders = {one.leader for one in members if one.leader}
            if leaders != {one.id for one in members if one.slots}:
                return False
        return True

    async def rejoin(self, node: Node, leader: Node) -> None:
        """Start the dead one again; it learns that its place is taken and follows."""
        await node.restart()

    async def promote(self, replica: Node, *, force: bool) -> None:
        """``CLUSTER FAILOVER`` on the replica; with ``force`` it is ``TAKEOVER``."""
        await replica.call("CLUSTER", "FAILOVER", *(["TAKEOVER"] if force else []))

        async def done() -> bool:
            return replica in await self.primaries()

        await until(done, "the failover")

    def _node(self, port: int) -> Node:
        return next(node for node in self.nodes if node.port == port)

    async def _join(self) -> None:
        leaders, followers = self.nodes[:PRIMARIES], self.nodes[PRIMARIES:]
        borders = [index * SLOTS // PRIMARIES for index in range(PRIMARIES + 1)]
        for index, node in enumerate(self.nodes):
            await node.call("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for index, node in enumerate(leaders):
            await node.call("CLUSTER", "ADDSLOTSRANGE", borders[index], borders[index + 1] - 1)
        for node in self.nodes[1:]:
            bus = node.server.bus_port
            await self.nodes[0].call("CLUSTER", "MEET", HOST, node.port, bus)

        async def met() -> bool:
            count = len(self.nodes)
            for node in self.nodes:
                members = await self._members_seen_by(node)
                if len(members) < count or any("handshake" in one.flags for one in members):
                    return False
            return True

        await until(met, "the nodes to meet")
        for leader, follower in zip(leaders, followers, strict=True):
            await follower.call("CLUSTER", "REPLICATE", await self.id_of(leader))

    async def _members_seen_by(self, node: Node) -> list[Member]:
        async with node.client() as client:
            # redis-py would parse it into less than we need.
            client.response_callbacks.pop("CLUSTER NODES", None)
            said = cast(str, await client.execute_command("CLUSTER NODES"))
        return [_member(line) for line in said.splitlines()]


def _member(line: str) -> Member:
    name, address, flags, leader, _, _, _, link, *slots = line.split()
    return Member(
        id=name,
        port=int(address.partition("@")[0].rpartition(":")[2]),
        flags=frozenset(flags.split(",")),
        leader="" if leader == "-" else leader,
        connected=link == "connected",
        # A slot in brackets is on its way between two.
        slots=tuple(_range(part) for part in slots if not part.startswith("[")),
    )


def _range(part: str) -> tuple[int, int]:
    first, _, last = part.partition("-")
    return int(first), int(last or first)


def _pairs(text: str) -> dict[str, str]:
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
