"""The machine on which figures were measured."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec
import psutil

from bench.resp import Connection
from voicefleet.embedded_server import EmbeddedServer

_PACKAGES: Final = ("redis", "hiredis", "numpy", "soxr", "anyio")


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """A description of the machine. ``load_average`` is from before the benches."""

    measured_at: str
    cpu: str
    cores: int
    memory_gb: float
    kernel: str
    python: str
    server: str
    packages: dict[str, str]
    load_average: tuple[float, float, float]
    accelerator: str | None = None

    @property
    def line(self) -> str:
        """The description in one line."""
        load = ", ".join(f"{value:.2f}" for value in self.load_average)
        accelerator = "" if self.accelerator is None else f"{self.accelerator}; "
        return (
            f"{accelerator}{self.cpu}, {self.cores} cores, {self.memory_gb:.0f} GB; {self.kernel}; "
            f"Python {self.python}; {self.server}; load average {load}; {self.measured_at}"
        )


def describe(accelerator: str | None = None, *packages: str) -> Machine:
    """Describe this machine, and the server that comes with the fleet.

    ``packages`` are listed beside the usual ones.
    """
    return Machine(
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        cpu=_cpu(),
        cores=len(psutil.Process().cpu_affinity() or ()) or os.cpu_count() or 1,
        memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
        kernel=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        server=_server(),
        packages={name: version(name) for name in (*_PACKAGES, *packages)},
        load_average=psutil.getloadavg(),
        accelerator=accelerator,
    )


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _server() -> str:
    with EmbeddedServer.start_blocking() as server, Connection(server.port) as connection:
        info = dict(
            line.split(":", 1)
            for line in connection.call("INFO", "server").decode().splitlines()
            if ":" in line
        )
    name = info.get("server_name", "redis").capitalize()
    return f"{name} {info.get('valkey_version') or info['redis_version']}"
