"""Our own connection: replies in order, pushes beside them, and an honest end."""

import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketStream
from redis.asyncio import Redis

from voicefleet.embedded_server import EmbeddedServer
from voicefleet.wire.endpoint import Endpoint, RedisConfig, resolve
from voicefleet.wire.link import Link, LinkClosedError, Reply, ReplyError

pytestmark = pytest.mark.anyio

HANG_S = 20.0


@asynccontextmanager
async def linked(url: str, **options: object) -> AsyncIterator[Link]:
    endpoint = resolve(RedisConfig(url=url))
    link = await Link.open(endpoint.seeds[0], endpoint, **options)  # pyright: ignore[reportArgumentType]
    try:
        with anyio.fail_after(HANG_S):
            yield link
    finally:
        link.close()


@pytest.fixture
async def link(redis_url: str) -> AsyncGenerator[Link]:
    async with linked(redis_url) as link:
        yield link


@asynccontextmanager
async def acting(
    act: Callable[[SocketStream], Awaitable[None]], timeout_s: float = 3.0
) -> AsyncGenerator[Endpoint]:
    """A server that says hello and then does as the test says."""

    async def serve(peer: SocketStream) -> None:
        async with peer:
            try:
                await peer.receive()
                await peer.send(b"%1\r\n+server\r\n+actor\r\n")
                await act(peer)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                pass

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", family=socket.AF_INET)
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield Endpoint(topology="standalone", seeds=(("127.0.0.1", port),), timeout_s=timeout_s)
        tasks.cancel_scope.cancel()


class TestReplies:
    @pytest.mark.matrix
    async def test_come_in_the_order_of_the_commands(self, redis_url: str) -> None:
        async with linked(redis_url) as link:
            assert await link.batch([["ECHO", i] for i in range(1000)]) == [
                b"%d" % i for i in range(1000)
            ]

    async def test_of_many_callers_do_not_mix(self, link: Link) -> None:
        async def ask(caller: int) -> None:
            for round_ in range(20):
                words = [f"{caller}-{round_}-{i}" for i in range(5)]
                assert await link.batch([["ECHO", word] for word in words]) == [
                    word.encode() for word in words
                ]

        async with anyio.create_task_group() as tasks:
            for caller in range(20):
                tasks.start_soon(ask, caller)

    async def test_are_of_every_type(self, link: Link, prefix: str) -> None:
        key = f"{prefix}:hash"
        replies = await link.batch(
            [
                ["HSET", key, "field", b"\x00\xff\r\n"],
                ["HGETALL", key],
                ["GET", f"{prefix}:none"],
                ["DEL", key],
                ["ECHO", ""],
                ["ECHO", "x" * 1_000_000],
            ]
        )
        assert replies[:5] == [1, {b"field": b"\x00\xff\r\n"}, None, 1, b""]
        assert replies[5] == b"x" * 1_000_000

    async def test_errors_stand_in_their_places(self, link: Link, prefix: str) -> None:
        first, error, last = await link.batch(
            [["ECHO", "a"], ["INCR", f"{prefix}:x", "2"], ["ECHO", "b"]]
        )
        assert (first, last) == (b"a", b"b")
        assert isinstance(error, ReplyError)
        with pytest.raises(ReplyError, match="unknown command"):
            await link.call("NO-SUCH-COMMAND")
        assert await link.call("PING") == b"PONG"

    async def test_of_a_callback_come_with_their_batch(self, link: Link) -> None:
        got: list[list[Reply] | LinkClosedError] = []
        link.submit([["ECHO", "a"], ["ECHO", "b"]], got.append)
        link.submit([["ECHO", "c"]], got.append)
        await link.call("PING")
        assert got == [[b"a", b"b"], [b"c"]]

    async def test_go_past_a_caller_that_was_cancelled(self, link: Link) -> None:
        for _ in range(20):
            with anyio.move_on_after(0) as scope:
                await link.batch([["ECHO", "nobody waits"], ["ECHO", "for this"]])
            assert scope.cancelled_caught
            assert await link.call("ECHO", "but for this") == b"but for this"


async def test_pushes_come_beside_the_replies(redis: Redis, redis_url: str, prefix: str) -> None:
    pushes: list[list[Reply]] = []
    arrived = anyio.Event()

    def on_push(push: list[Reply]) -> None:
        pushes.append(push)
        arrived.set()

    key = f"{prefix}:key"
    async with linked(redis_url, on_push=on_push) as link:
        assert await link.call("CLIENT", "TRACKING", "ON") == b"OK"
        assert await link.call("GET", key) is None
        await redis.set(key, "1", ex=60)
        await arrived.wait()
        assert pushes == [[b"invalidate", [key.encode()]]]
        assert await link.call("GET", key) == b"1"


async def test_a_push_nobody_listens_to_does_no_harm(
    redis: Redis, redis_url: str, prefix: str
) -> None:
    async with linked(redis_url) as link:
        await link.batch([["CLIENT", "TRACKING", "ON"], ["GET", f"{prefix}:key"]])
        await redis.set(f"{prefix}:key", "1", ex=60)
        assert await link.batch([["ECHO", i] for i in range(3)]) == [b"0", b"1", b"2"]


class TestTheEnd:
    async def test_close_fails_whoever_waits(self, redis_url: str) -> None:
        lost: list[str] = []
        async with linked(redis_url, on_lost=lambda: lost.append("lost")) as link:
            failures: list[LinkClosedError] = []

            async def wait() -> None:
                with pytest.raises(LinkClosedError) as caught:
                    await link.call("XREAD", "BLOCK", 10_000, "STREAMS", "nothing", "$")
                failures.append(caught.value)

            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(wait)
                await anyio.sleep(0.05)
                assert not link.closed
                link.close()
            assert len(failures) == 3
            assert lost == ["lost"]
            assert link.closed
            with pytest.raises(LinkClosedError, match="closed"):
                await link.call("PING")
            link.close()
            assert lost == ["lost"]

    async def test_of_the_server_fails_whoever_waits(self, redis: Redis, redis_url: str) -> None:
        gone = anyio.Event()
        async with linked(redis_url, on_lost=gone.set) as link:
            ident = await link.call("CLIENT", "ID")
            await redis.execute_command("CLIENT", "KILL", "ID", ident)
            await gone.wait()
            assert link.closed
            with pytest.raises(LinkClosedError):
                await link.call("PING")

    async def test_no_answer_in_time_closes_the_connection(self) -> None:
        async with acting(lambda _: anyio.sleep_forever(), timeout_s=0.1) as endpoint:
            link = await Link.open(endpoint.seeds[0], endpoint)
            with pytest.raises(LinkClosedError, match="in time"):
                await link.call("PING")
            # An answer that still comes would be taken for another's.
            assert link.closed

    async def test_a_timeout_of_its_own_outranks_the_usual(self, redis_url: str) -> None:
        async with linked(redis_url) as link:
            with pytest.raises(LinkClosedError, match="in time"):
                await link.call("BLPOP", "nothing", 10, timeout_s=0.05)

    @pytest.mark.parametrize("sent", [b"$-x\r\n", b"!!!\r\n"])
    async def test_nonsense_closes_the_connection(self, sent: bytes) -> None:
        async def babble(peer: SocketStream) -> None:
            await peer.receive()
            await peer.send(sent)
            await peer.receive()

        async with acting(babble) as endpoint:
            link = await Link.open(endpoint.seeds[0], endpoint)
            with pytest.raises(LinkClosedError, match="lost"):
                await link.call("PING")

    async def test_a_reply_nobody_asked_for_closes_the_connection(self) -> None:
        lost = anyio.Event()

        async def volunteer(peer: SocketStream) -> None:
            await peer.send(b"+HELLO?\r\n")
            await peer.receive()

        async with acting(volunteer) as endpoint:
            await Link.open(endpoint.seeds[0], endpoint, on_lost=lost.set)
            with anyio.fail_after(HANG_S):
                await lost.wait()

    async def test_replies_in_pieces_are_put_together(self) -> None:
        async def stammer(peer: SocketStream) -> None:
            await peer.receive()
            for at in range(24):
                await peer.send(b"$5\r\nhello\r\n$6\r\nworld!\r\n"[at : at + 1])
                await anyio.lowlevel.checkpoint()

        async with acting(stammer) as endpoint:
            link = await Link.open(endpoint.seeds[0], endpoint)
            with anyio.fail_after(HANG_S):
                assert await link.batch([["A"], ["B"]]) == [b"hello", b"world!"]
            link.close()


class TestOpening:
    async def test_names_itself_and_takes_the_database(self, redis_url: str) -> None:
        async with linked(f"{redis_url}/3") as link:
            info = await link.call("CLIENT", "INFO")
            assert isinstance(info, bytes)
            assert {"db=3", "name=voicefleet", "resp=3"} <= set(info.decode().split())

    async def test_authenticates(self) -> None:
        alice = "user alice on >wonder ~* +@all"
        async with EmbeddedServer.start(password="s3cret", config=[alice]) as server:
            async with linked(server.url) as link:
                assert await link.call("ACL", "WHOAMI") == b"default"
            async with linked(f"redis://alice:wonder@127.0.0.1:{server.port}") as link:
                assert await link.call("ACL", "WHOAMI") == b"alice"
            for userinfo in ("", ":wrong@", "alice:wrong@"):
                with pytest.raises(ReplyError, match=r"WRONGPASS|NOAUTH"):
                    async with linked(f"redis://{userinfo}127.0.0.1:{server.port}"):
                        pass

    async def test_a_refused_database_is_an_error(self, redis_url: str) -> None:
        with pytest.raises(ReplyError, match="DB index"):
            async with linked(f"{redis_url}/9999"):
                pass

    async def test_nobody_there(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with pytest.raises(LinkClosedError, match=f"cannot connect to 127.0.0.1:{port}"):
            async with linked(f"redis://127.0.0.1:{port}"):
                pass
