"""One server that persists its data, on a small disk of its own if one can be mounted."""

import os
import shutil
import subprocess
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, Self

from verify.chaos.kinds import Topology
from verify.chaos.node import Node

DISK_MB: Final = 4096
_CONFIG: Final = (
    "appendfsync everysec",
    "auto-aof-rewrite-percentage 100",
    "auto-aof-rewrite-min-size 64mb",
)


class NoDiskError(Exception):
    """The server has no disk of its own, so none can be filled. The message says why."""


class Disk:
    """A tmpfs. ``fill`` leaves no byte free, ``empty`` gives all back."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def fill(self) -> None:
        """Shrink it to what is on it."""
        facts = os.statvfs(self.directory)
        used = (facts.f_blocks - facts.f_bfree) * facts.f_frsize
        # A write between the two system calls makes the first attempt fail: try larger sizes.
        for spare in (0, 1 << 20, 4 << 20, 16 << 20):
            if self._resize(used + spare + facts.f_frsize):
                return
        raise NoDiskError("the disk cannot be made smaller")

    def empty(self) -> None:
        """Restore its size."""
        self._resize(DISK_MB << 20)

    def _resize(self, size: int) -> bool:
        command = ["mount", "-o", f"remount,size={size}", str(self.directory)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0


class Standalone:
    """A server with an append-only file. ``disk`` is ``None`` where nothing can be mounted."""

    topology: Topology = "standalone"

    def __init__(self, node: Node, directory: Path, disk: Disk | None) -> None:
        self.node = node
        self.url = node.server.url
        self.disk = disk
        self._directory = directory

    @classmethod
    @asynccontextmanager
    async def start(cls, directory: Path, binary: Path | str | None = None) -> AsyncGenerator[Self]:
        """Start it."""
        data = directory / "data"
        data.mkdir(parents=True)
        with _mounted(data) as disk:
            async with Node.start(_CONFIG, binary=binary, directory=data) as node:
                yield cls(node, data, disk)

    async def primaries(self) -> list[Node]:
        """The one there is."""
        return [self.node]

    async def owner(self, key: str) -> Node:
        """The one there is."""
        return self.node

    async def replica_of(self, primary: Node) -> Node:
        """There is none."""
        raise NotImplementedError

    async def is_whole(self) -> bool:
        """Whether it answers and accepts writes."""
        facts = await self.node.info("persistence")
        return not facts["loading"] and facts["aof_last_write_status"] == "ok"

    async def rejoin(self, node: Node, leader: Node) -> None:
        """There is nothing to rejoin."""
        raise NotImplementedError

    async def promote(self, replica: Node, *, force: bool) -> None:
        """There is nobody to promote."""
        raise NotImplementedError

    @property
    def forgets_when_killed(self) -> bool:
        """Whether a kill may lose the newest writes.

        On a disk of its own the kernel has them before the reply; a slow disk delays the file.
        """
        return self.disk is None

    def wipe(self) -> None:
        """Delete its data while it is not running."""
        for path in self._directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


@contextmanager
def _mounted(directory: Path) -> Generator[Disk | None]:
    """Mount a tmpfs, if permitted."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(directory)]
    may = os.geteuid() == 0 and shutil.which("mount") is not None
    if not may or subprocess.run(command, check=False, capture_output=True).returncode:
        yield None
        return
    try:
        yield Disk(directory)
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=False, capture_output=True)
