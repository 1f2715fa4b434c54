"""What a fleet of a given size needs, computed from measured costs and named assumptions."""

import math
import time
from typing import Final

import msgspec
import psutil

from bench.cpu_time import CpuMark
from bench.load.point import Point
from bench.resp import Connection, pack
from voicefleet.embedded_server import EmbeddedServer
from voicefleet.schemas.audio import FRAMES_PER_S
from voicefleet.schemas.keys import GROUP, Keys
from voicefleet.worker.config.sections import WorkerConfig
from voicefleet.worker.heartbeat import UNLISTED_CHECK_BEATS
from voicefleet.worker.publish.retention import entries_to_keep

SIZES: Final = (1_000, 10_000, 100_000)

HEADROOM: Final = 0.6
"""The share of a core, link, memory or engine that planning uses at most."""

GPU_SLOTS: Final = 64
"""Slots of a GPU worker with CosyVoice 2: an assumption, not measured."""

SHARD_MEMORY_GB: Final = 16.0
LINK_GBIT: Final = 10.0
TURN_EVERY_S: Final = 10.0
"""The time between a session's turns."""

_BEAT_S: Final = 1.0
"""How long the heartbeats' queries run, for each size."""

_MEMBERS: Final = (10, 1_000)


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """Measured costs. Shares are of one core; a beat costs ``beat_us`` plus a share per worker."""

    worker_share: float
    server_share: float
    memory_mb: float
    mbit_in: float
    mbit_out: float
    turn_us: float
    beat_us: float
    beat_us_per_worker: float


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What ``sessions`` live sessions need. ``shard_binds`` names what fills a shard first.

    ``worker_cores`` are for the fleet's own work (audio chain, publishing), without an engine.
    ``queue_share`` is what one model's queue takes of its server's core, ``registry_share`` what
    the heartbeats of ``gpu_workers`` take of theirs.
    """

    sessions: int
    shards: int
    shard_binds: str
    shard_sessions: int
    shard_memory_gb: float
    shard_gbit_in: float
    shard_gbit_out: float
    worker_cores: int
    gpu_workers: int
    queue_share: float
    registry_share: float


def costs(point: Point, turn_us: float, beat_us: float, beat_us_per_worker: float) -> Costs:
    """The costs of a session at a point of the scale."""
    entries = entries_to_keep(int(WorkerConfig().audio_window_s * FRAMES_PER_S))
    return Costs(
        worker_share=point.worker_share / point.sessions,
        server_share=point.server_share / point.sessions,
        memory_mb=entries * point.bytes_per_entry / 1e6,
        mbit_in=point.server_bytes_in * 8e-6 / point.sessions,
        mbit_out=point.server_bytes_out * 8e-6 / point.sessions,
        turn_us=turn_us,
        beat_us=beat_us,
        beat_us_per_worker=beat_us_per_worker,
    )


def need(sessions: int, each: Costs) -> Need:
    """What ``sessions`` sessions need."""
    carried = {
        "processor": HEADROOM / each.server_share,
        "memory": HEADROOM * SHARD_MEMORY_GB * 1000 / each.memory_mb,
        "network": HEADROOM * LINK_GBIT * 1000 / max(each.mbit_in, each.mbit_out),
    }
    binds = min(carried, key=lambda what: carried[what])
    shards = math.ceil(sessions / carried[binds])
    here = math.ceil(sessions / shards)
    workers = math.ceil(sessions / (HEADROOM * GPU_SLOTS))
    beats_per_s = workers * 1000 / WorkerConfig().heartbeat_ms
    return Need(
        sessions=sessions,
        shards=shards,
        shard_binds=binds,
        shard_sessions=here,
        shard_memory_gb=here * each.memory_mb / 1000,
        shard_gbit_in=here * each.mbit_in / 1000,
        shard_gbit_out=here * each.mbit_out / 1000,
        worker_cores=math.ceil(sessions * each.worker_share / HEADROOM),
        gpu_workers=workers,
        queue_share=sessions / TURN_EVERY_S * each.turn_us / 1e6,
        registry_share=beats_per_s
        * (each.beat_us + workers * each.beat_us_per_worker / UNLISTED_CHECK_BEATS)
        / 1e6,
    )


def beat_costs() -> tuple[float, float]:
    """The server's cost of a heartbeat's look at the fleet: us, and us per worker.

    All workers, and all consumers of a queue: a worker asks so with each ``UNLISTED_CHECK_BEATS``th
    of its beats, at random offsets.
    """
    with EmbeddedServer.start_blocking() as server, Connection(server.port) as connection:
        few, many = (_beat_us(server, connection, members) for members in _MEMBERS)
    slope = (many - few) / (_MEMBERS[1] - _MEMBERS[0])
    return max(0.0, few - slope * _MEMBERS[0]), max(0.0, slope)


def _beat_us(server: EmbeddedServer, connection: Connection, members: int) -> float:
    keys = Keys()
    queue = keys.requests("sized")
    connection.call("FLUSHALL")
    connection.call("XGROUP", "CREATE", queue, GROUP, "$", "MKSTREAM")
    for i in range(members):
        name = f"gpu{i % 8}@host-{i // 8:05}"
        connection.call("ZADD", keys.workers, 1_700_000_000_000 + i, name)
        connection.call("XGROUP", "CREATECONSUMER", queue, GROUP, name)
    questions = [
        pack("ZRANGE", keys.workers, 0, -1),
        pack("XINFO", "CONSUMERS", queue, GROUP),
    ]
    process = psutil.Process(server.pid)
    begin, beats = CpuMark.of(process), 0
    deadline = time.monotonic() + _BEAT_S
    while time.monotonic() < deadline:
        for question in questions:
            connection.send(question)
            connection.receive()
        beats += 1
    end = CpuMark.of(process)
    return (end.used_s - begin.used_s) * 1e6 / beats
