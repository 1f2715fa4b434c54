"""The network of a run: one proxy for each worker, in a process of their own.

``python -m verify.chaos.network TARGET COUNT`` prints the ports as JSON; then it takes a line
``[index, weather]`` at a time and answers each with an empty one. It ends with its stdin.
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
from verify.chaos.proxy import FAIR, HOST, Proxy, Weather

_LINE: Final = 1 << 16


class Order(msgspec.Struct, frozen=True, array_like=True):
    """New weather for one of the proxies."""

    index: int
    weather: Weather


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
        """Where the worker finds the server."""
        return f"redis://{HOST}:{self._ports[name]}"

    async def set(self, name: str, weather: Weather = FAIR) -> None:
        """Change a worker's weather; it is so on return."""
        async with self._lock:
            order = Order(self.names.index(name), weather)
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
            await proxies[order.index].set(order.weather)
            print(flush=True)


if __name__ == "__main__":
    anyio.run(serve, int(sys.argv[1]), int(sys.argv[2]))
