"""The proxy of the chaos runs, which simulates bad TCP connections."""

import contextlib
import time
from collections.abc import AsyncGenerator

import anyio
import pytest
from anyio.abc import SocketStream

from tests.harness.fleet import HANG_S
from verify.chaos.network import Network
from verify.chaos.proxy import HEALTHY, RETRANSMIT_S, Conditions, Proxy

pytestmark = pytest.mark.anyio

GONE = (anyio.BrokenResourceError, anyio.EndOfStream)
REFUSED = r"refused|failed|attempts"


@pytest.fixture
async def echo() -> AsyncGenerator[int]:
    """The port of an echo server."""

    async def answer(stream: SocketStream) -> None:
        with contextlib.suppress(anyio.BrokenResourceError):
            async with stream:
                async for chunk in stream:
                    await stream.send(chunk)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, answer)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


@pytest.fixture
async def proxy(echo: int) -> AsyncGenerator[Proxy]:
    async with Proxy.start(echo) as proxy:
        yield proxy


async def exchange(stream: SocketStream, count: int, size: int = 100) -> float:
    """Send numbered blocks and expect them back in order; returns the time taken in s."""
    blocks = b"".join(index.to_bytes(4, "big") * (size // 4) for index in range(count))
    began = time.monotonic()
    got = b""

    async def send() -> None:
        for start in range(0, len(blocks), size):
            await stream.send(blocks[start : start + size])
            await anyio.lowlevel.checkpoint()

    with anyio.fail_after(HANG_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            while len(got) < len(blocks):
                got += await stream.receive()
    assert got == blocks
    return time.monotonic() - began


class TestProxy:
    async def test_in_fair_weather_everything_passes(self, proxy: Proxy) -> None:
        async with await anyio.connect_tcp("127.0.0.1", proxy.port) as stream:
            await exchange(stream, 1000, 4000)

    async def test_delay_holds_up_and_keeps_order(self, proxy: Proxy) -> None:
        await proxy.set(Conditions(delay_s=0.1, jitter_s=0.05))
        async with await anyio.connect_tcp("127.0.0.1", proxy.port) as stream:
            assert await exchange(stream, 50) >= 0.1

    async def test_loss_stalls_as_a_retransmission_does(self, proxy: Proxy) -> None:
        await proxy.set(Conditions(loss=0.5))
        async with await anyio.connect_tcp("127.0.0.1", proxy.port) as stream:
            slowest = max([await exchange(stream, 1) for _ in range(6)])
            assert slowest >= RETRANSMIT_S

    @pytest.mark.parametrize("forgotten", [False, True])
    async def test_silence_keeps_connections_open(self, proxy: Proxy, forgotten: bool) -> None:
        async with await anyio.connect_tcp("127.0.0.1", proxy.port) as stream:
            await exchange(stream, 1)
            await proxy.set(Conditions("silent", forgotten=forgotten))
            await stream.send(b"x" * 100)
            with anyio.move_on_after(0.3) as waited:
                await stream.receive()
            assert waited.cancelled_caught
            async with await anyio.connect_tcp("127.0.0.1", proxy.port) as late:
                await late.send(b"late")
                with anyio.move_on_after(0.2) as waited:
                    await late.receive()
                assert waited.cancelled_caught
                await proxy.set(HEALTHY)
                with anyio.fail_after(HANG_S):
                    if forgotten:
                        with pytest.raises(GONE):
                            await stream.receive()
                    else:
                        assert await stream.receive() == b"x" * 100
                        assert await late.receive() == b"late"

    async def test_a_partition_resets_and_refuses_until_it_heals(self, proxy: Proxy) -> None:
        async with await anyio.connect_tcp("127.0.0.1", proxy.port) as stream:
            await exchange(stream, 1)
            port = proxy.port
            await proxy.set(Conditions("down"))
            with anyio.fail_after(HANG_S), pytest.raises(anyio.BrokenResourceError):
                await stream.receive()
        with pytest.raises(OSError, match=REFUSED):
            await anyio.connect_tcp("127.0.0.1", port)
        await proxy.set(HEALTHY)
        assert proxy.port == port
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await exchange(stream, 10)

    async def test_a_server_that_goes_away_is_seen_through_it(self) -> None:
        async with (
            Proxy.start(1) as proxy,  # nobody listens there
            await anyio.connect_tcp("127.0.0.1", proxy.port) as stream,
        ):
            with anyio.fail_after(HANG_S), pytest.raises(GONE):
                await stream.receive()

    async def test_the_network_gives_each_worker_its_own(self, echo: int) -> None:
        async with Network.start(echo, ("w1", "w2")) as network:
            await network.set("w1", Conditions("down"))
            port = int(network.url("w2").rpartition(":")[2])
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await exchange(stream, 10)
            with pytest.raises(OSError, match=REFUSED):
                await anyio.connect_tcp("127.0.0.1", int(network.url("w1").rpartition(":")[2]))
            await network.set("w1")
