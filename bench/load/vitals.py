"""Memory, descriptors, threads and keys of a fleet, sampled from outside."""

import time

import msgspec
import psutil

from bench.load.fleet import Fleet, server_info

_MB = 1e6


class WorkerSigns(msgspec.Struct, frozen=True, kw_only=True):
    """The measurements of a worker's process."""

    rss_mb: float
    fds: int
    threads: int
    cpu_s: float


class Vitals(msgspec.Struct, frozen=True, kw_only=True):
    """All processes at one moment, ``at_s`` after the soak started.

    A worker that is gone is ``None``. ``keys`` are the server's, ``used_mb`` its allocated memory.
    """

    at_s: float
    workers: tuple[WorkerSigns | None, ...]
    server_rss_mb: float
    server_fds: int
    used_mb: float
    keys: int


def take(on: Fleet, began: float) -> Vitals:
    """Measure all processes; ``began`` is on the monotonic clock."""
    server = on.server_process
    with on.connect() as connection:
        info = server_info(connection, "memory")
        keys: int = connection.call("DBSIZE")
        # While this connection is open, so that the count does not depend on when it is closed.
        server_fds = server.num_fds()
    return Vitals(
        at_s=time.monotonic() - began,
        workers=tuple(_signs(worker.process) for worker in on.workers),
        server_rss_mb=server.memory_info().rss / _MB,
        server_fds=server_fds,
        used_mb=int(info["used_memory"]) / _MB,
        keys=keys,
    )


def _signs(process: psutil.Process) -> WorkerSigns | None:
    try:
        with process.oneshot():
            times = process.cpu_times()
            return WorkerSigns(
                rss_mb=process.memory_info().rss / _MB,
                fds=process.num_fds(),
                threads=process.num_threads(),
                cpu_s=times.user + times.system,
            )
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # gone, or a zombie
        return None
