"""The network of a run: one proxy for each worker, in a process of their own.

``python -m verify.chaos.network TARGET COUNT`` prints the ports as JSON; then it it reads lines
``[index, conditions]`` and answers each with an empty line. It ends when its stdin does.
"""

import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, Self

import anyio
import msgspec
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from bench.testbed import ROOT
from verify.chaos.proxy import HEALTHY, HOST, Conditions, Proxy

_LINE: Final = 1 << 16


class Order(msgspec.Struct, frozen=True, array_like=True):
    """New conditions for one of the proxies."""

    index: int
    conditions: Conditions


class Network:
    """The running proxies, by the names of the workers behind them. Made by ``start``."""

    def __init__(self, process: Process, names: tuple[str, ...]) -> None:
        if process.stdin is None or process.stdout is None:
            raise ValueError("the proxies' pipes are missing")
        self._process = process
        self._orders = process.stdin
        self._replies = BufferedByteReceiveStream(process.stdout)
        self.names = names
        self._ports: dict[str, int] = {}
        self._lock = anyio.Lock()

    @classmethod
    @asynccontextmanager
    async def start(cls, target: int, names: tuple[str, ...]) -> AsyncGenerator[Self]:
        """Start one proxy for each name; all lead to the port ``target``."""
        command = [sys.executable, "-m", "verify.chaos.network", str(target), str(len(names))]
        process = await anyio.open_process(command, cwd=ROOT, stderr=None, start_new_session=True)
        try:
            network = cls(process, names)
            ports = msgspec.json.decode(await network._line(), type=list[int])
            network._ports = dict(zip(names, ports, strict=True))
            yield network
        finally:
            with anyio.CancelScope(shield=True):
                if process.returncode is None:
                    process.kill()
                await process.wait()
                await process.aclose()

    def url(self, name: str) -> str:
        """The URL that the worker is to use."""
        return f"redis://{HOST}:{self._ports[name]}"

    async def set(self, name: str, conditions: Conditions = HEALTHY) -> None:
        """Change the conditions of a worker's connections. They apply when this returns."""
        async with self._lock:
            order = Order(self.names.index(name), conditions)
            await self._orders.send(msgspec.json.encode(order) + b"\n")
            await self._line()

    async def _line(self) -> bytes:
        return await self._replies.receive_until(b"\n", _LINE)


async def serve(target: int, count: int) -> None:
    """Run the proxies until stdin ends."""
    async with AsyncExitStack() as stack:
        proxies = [
            await stack.enter_async_context(Proxy.start(target, seed)) for seed in range(count)
        ]
        print(msgspec.json.encode([proxy.port for proxy in proxies]).decode(), flush=True)
        while line := await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            order = msgspec.json.decode(line, type=Order)
            await proxies[order.index].set(order.conditions)
            print(flush=True)


if __name__ == "__main__":
    anyio.run(serve, int(sys.argv[1]), int(sys.argv[2]))
