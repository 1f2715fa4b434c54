"""Slots of speaking sessions and of queues move between a Cluster's primaries."""

import time
from typing import Final

import anyio
from redis.exceptions import RedisError

from verify.chaos.cluster import Cluster
from verify.chaos.fault_report import FaultReport
from verify.chaos.node import Node
from verify.chaos.schedule import Injection
from verify.chaos.world import CannotInjectError, World
from voicefleet.embedded_server import HOST

MOVED: Final = 8
_PAGE: Final = 10
_PAUSE_S: Final = 0.05
_MIGRATE_MS: Final = 5000


async def migrate(world: World, injection: Injection) -> FaultReport:
    """Move slots one after another, key by key, as ``redis-cli --cluster reshard`` does."""
    cluster = world.servers
    if not isinstance(cluster, Cluster):
        raise CannotInjectError("no Cluster")
    rng = injection.random()
    speaking = sorted(await world.records.speaking(world.sessions))
    keys = [world.records.keys.audio(session) for session in speaking]
    keys = rng.sample(keys, min(MOVED, len(keys)))
    if rng.random() < 0.5:
        keys.insert(len(keys) // 2, world.records.keys.requests("tone-test"))
    if not keys:
        raise CannotInjectError("nobody speaks")
    ends = time.monotonic() + injection.seconds
    moved = 0
    for key in keys:
        source = await cluster.owner(key)
        target = rng.choice([one for one in await cluster.primaries() if one is not source])
        await move(cluster, await cluster.slot(key), source, target)
        moved += 1
        if time.monotonic() > ends:
            break
    return FaultReport(note=f"{moved} slots")


async def move(cluster: Cluster, slot: int, source: Node, target: Node) -> None:
    """Move a slot with all its keys from one primary to another."""
    from_id, to_id = await cluster.id_of(source), await cluster.id_of(target)
    await target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", from_id)
    await source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", to_id)
    while page := await source.call("CLUSTER", "GETKEYSINSLOT", slot, _PAGE):
        for key in page:
            # One at a time, so that the keys of a session are on both sides for a moment.
            command = ("MIGRATE", HOST, target.port, key, 0, _MIGRATE_MS)
            await source.call(*command, timeout_s=10)
            await anyio.sleep(_PAUSE_S)
    for node in (target, source, *cluster.nodes):
        try:
            await node.call("CLUSTER", "SETSLOT", slot, "NODE", to_id)
        except RedisError:
            if node in (target, source):
                raise  # a replica learns it from its primary
