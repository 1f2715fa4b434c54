"""The kinds of faults there are, and how long each lasts."""

from typing import Final, Literal

import msgspec

Topology = Literal["standalone", "sentinel", "cluster"]

ALL: Final[tuple[Topology, ...]] = ("standalone", "sentinel", "cluster")


class Kind(msgspec.Struct, frozen=True):
    """A kind of fault. ``seconds`` is the range of its length; what is over at once has none."""

    name: str
    seconds: tuple[float, float] = (0.0, 0.0)
    topologies: tuple[Topology, ...] = ALL


KINDS: Final = (
    Kind("worker_kill"),
    Kind("worker_kill_two"),
    Kind("worker_stop", (1.0, 20.0)),
    Kind("worker_drain"),
    Kind("drain_all_but_one"),
    Kind("clock_jump", (3.0, 8.0)),
    Kind("client_kill", (1.0, 5.0)),
    Kind("client_pause", (0.5, 5.0)),
    Kind("script_flush"),
    Kind("slow_server", (0.5, 3.0)),
    Kind("server_full", (2.0, 10.0)),
    Kind("control_flood", (5.0, 5.0)),
    Kind("slow_reader", (3.0, 3.0)),
    Kind("dead_reader", (3.0, 3.0)),
    Kind("late_reader", (1.0, 1.0)),
    Kind("server_kill", (0.2, 10.0), ("standalone",)),
    Kind("server_empty", (0.2, 5.0), ("standalone",)),
    Kind("flushall", topologies=("standalone",)),
    Kind("disk_full", (2.0, 8.0), ("standalone",)),
    Kind("net_delay", (3.0, 10.0), ("standalone",)),
    Kind("net_loss", (3.0, 10.0), ("standalone",)),
    Kind("net_half_open", (3.0, 10.0), ("standalone",)),
    Kind("net_partition", (3.0, 10.0), ("standalone",)),
    Kind("primary_kill", topologies=("sentinel", "cluster")),
    Kind("lost_tail", (0.2, 1.0), ("sentinel", "cluster")),
    Kind("primary_stop", (2.5, 6.0), ("sentinel", "cluster")),
    Kind("manual_failover", topologies=("sentinel", "cluster")),
    Kind("slot_migration", (3.0, 8.0), ("cluster",)),
)


def of(topology: Topology) -> tuple[Kind, ...]:
    """The kinds that this topology knows."""
    return tuple(kind for kind in KINDS if topology in kind.topologies)
