"""The watch: what a key says now, soon after it says it, whatever happens to the connection."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from redis.asyncio import Redis, from_url
from redis.asyncio.cluster import RedisCluster

from voicefleet.embedded_server import EmbeddedServer
from voicefleet.wire.connect import connect
from voicefleet.wire.endpoint import RedisConfig, resolve
from voicefleet.wire.link import Reply, ReplyError
from voicefleet.worker.control.key_watch import KeyWatch, Subscription

pytestmark = pytest.mark.anyio

HANG_S = 20.0


@asynccontextmanager
async def watching(url: str) -> AsyncIterator[KeyWatch]:
    with anyio.fail_after(HANG_S):
        async with (
            connect(resolve(RedisConfig(url=url))) as topology,
            anyio.create_task_group() as tasks,
        ):
            watch = KeyWatch(topology)
            await tasks.start(watch.run)
            yield watch
            tasks.cancel_scope.cancel()


class Reader:
    """What a subscriber was told, in order."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self._told = anyio.Event()

    def take(self, reply: Reply) -> None:
        self.replies.append(reply)
        self._told.set()
        self._told = anyio.Event()

    async def hears(self, value: bytes | None) -> None:
        """Wait until it is told this."""
        while not self.replies or self.replies[-1] != value:
            await self._told.wait()


@asynccontextmanager
async def reading(watch: KeyWatch, key: str) -> AsyncIterator[Reader]:
    reader = Reader()
    async with watch.subscribe(key, lambda: ("GET", key), reader.take) as subscription:
        await subscription.seen.wait()
        yield reader


async def watchers(redis: Redis) -> list[int]:
    """Ids of the connections that track keys."""
    clients = await redis.client_list()
    return [int(client["id"]) for client in clients if "t" in client["flags"]]


@pytest.mark.matrix
async def test_a_key_from_its_first_value_to_its_last(
    redis: Redis, redis_url: str, prefix: str
) -> None:
    key = f"{prefix}:key"
    await redis.set(key, "0", ex=60)
    async with watching(redis_url) as watch, reading(watch, key) as reader:
        assert reader.replies == [b"0"]
        assert watch.tracking
        for value in (b"1", b"2", b"2 again"):
            await redis.set(key, value, ex=60)
            await reader.hears(value)
        await redis.append(key, "!")
        await reader.hears(b"2 again!")
        await redis.delete(key)
        await reader.hears(None)
        await redis.set(key, "back", ex=60)
        await reader.hears(b"back")


async def test_a_key_that_is_not_there_yet(redis: Redis, redis_url: str, prefix: str) -> None:
    key = f"{prefix}:key"
    async with watching(redis_url) as watch, reading(watch, key) as reader:
        assert reader.replies == [None]
        await redis.set(key, "born", ex=60)
        await reader.hears(b"born")


async def test_a_key_that_expires(redis: Redis, redis_url: str, prefix: str) -> None:
    key = f"{prefix}:key"
    async with watching(redis_url) as watch:
        await redis.set(key, "brief", px=100)
        async with reading(watch, key) as reader:
            await reader.hears(None)


async def test_changes_in_quick_succession_end_in_the_last(
    redis: Redis, redis_url: str, prefix: str
) -> None:
    key = f"{prefix}:key"
    async with watching(redis_url) as watch, reading(watch, key) as reader:
        pipe = redis.pipeline(transaction=False)
        for value in range(1000):
            pipe.set(key, value, ex=60)
        await pipe.execute()
        await reader.hears(b"999")


async def test_flushall_has_everything_read_again() -> None:
    async with (
        EmbeddedServer.start() as server,
        from_url(server.url) as redis,
        watching(server.url) as watch,
    ):
        await redis.set("key", "1")
        async with reading(watch, "key") as reader:
            await redis.flushall()
            await reader.hears(None)
            await redis.set("key", "2")
            await reader.hears(b"2")


async def test_a_change_while_the_connection_is_down_is_seen(
    redis: Redis, redis_url: str, prefix: str
) -> None:
    key = f"{prefix}:key"
    async with watching(redis_url) as watch, reading(watch, key) as reader:
        for value in (b"1", b"2"):
            # In one transaction: nobody can read in between.
            pipe = redis.pipeline(transaction=True)
            for ident in await watchers(redis):
                pipe.execute_command("CLIENT", "KILL", "ID", ident)
            pipe.set(key, value, ex=60)
            await pipe.execute()
            await reader.hears(value)
        await redis.set(key, "armed again", ex=60)
        await reader.hears(b"armed again")
        assert watch.tracking


async def test_a_server_that_comes_back_is_watched_again() -> None:
    async with EmbeddedServer.start() as server, watching(server.url) as watch:
        async with from_url(server.url) as redis:
            await redis.set("key", "before")
        async with reading(watch, "key") as reader:
            assert reader.replies == [b"before"]
            await server.kill()
            await anyio.sleep(0.2)
            await server.restart()
            await reader.hears(None)  # it kept nothing
            async with from_url(server.url) as redis:
                await redis.set("key", "after")
            await reader.hears(b"after")


async def test_a_primary_that_was_replaced_is_watched_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It goes on answering: of what its successor is told it may never hear."""
    async with (
        EmbeddedServer.start() as old,
        EmbeddedServer.start() as new,
        connect(resolve(RedisConfig(url=old.url))) as topology,
        anyio.create_task_group() as tasks,
    ):
        watch = KeyWatch(topology)
        await tasks.start(watch.run)
        async with reading(watch, "key") as reader:
            monkeypatch.setattr(topology, "owner", lambda _: ("127.0.0.1", new.port))
            async with from_url(new.url) as redis:
                await redis.set("key", "of the new one")
            with anyio.fail_after(HANG_S):
                await reader.hears(b"of the new one")
        tasks.cancel_scope.cancel()


async def test_keys_are_polled_where_tracking_is_refused() -> None:
    bob = "user bob on >pw ~* &* +@all -client|tracking"
    async with (
        EmbeddedServer.start(config=[bob]) as server,
        from_url(server.url) as redis,
        watching(f"redis://bob:pw@127.0.0.1:{server.port}") as watch,
        reading(watch, "key") as reader,
    ):
        assert not watch.tracking
        for value in (b"1", b"2"):
            await redis.set("key", value)
            await reader.hears(value)
        await redis.delete("key")
        await reader.hears(None)
        # The connection is gone, and the refusal is the same on the next.
        await redis.client_kill_filter(skipme=True)
        await redis.set("key", "3")
        await reader.hears(b"3")


async def test_an_error_is_a_reply_too(redis: Redis, redis_url: str, prefix: str) -> None:
    key = f"{prefix}:key"
    await redis.rpush(key, "not a string")
    await redis.expire(key, 60)
    async with watching(redis_url) as watch, reading(watch, key) as reader:
        assert isinstance(reader.replies[0], ReplyError)
        assert "WRONGTYPE" in str(reader.replies[0])
        await redis.delete(key)
        await redis.set(key, "mended", ex=60)
        await reader.hears(b"mended")


async def test_who_has_left_is_told_no_more(redis: Redis, redis_url: str, prefix: str) -> None:
    key = f"{prefix}:key"
    async with watching(redis_url) as watch:
        async with reading(watch, key) as stays:
            async with reading(watch, key) as leaves:
                await redis.set(key, "1", ex=60)
                await leaves.hears(b"1")
                await stays.hears(b"1")
            told = len(leaves.replies)
            await redis.set(key, "2", ex=60)
            await stays.hears(b"2")
            assert len(leaves.replies) == told
        async with reading(watch, key) as late:
            assert late.replies == [b"2"]


async def test_many_keys_each_tell_their_own(redis: Redis, redis_url: str, prefix: str) -> None:
    keys = [f"{prefix}:key:{index}" for index in range(200)]
    readers = [Reader() for _ in keys]
    async with watching(redis_url) as watch, anyio.create_task_group() as tasks:

        async def watch_one(key: str, reader: Reader) -> None:
            async with watch.subscribe(key, lambda: ("GET", key), reader.take) as one:
                await one.seen.wait()
                await reader.hears(key.encode())

        for key, reader in zip(keys, readers, strict=True):
            tasks.start_soon(watch_one, key, reader)
        while not all(reader.replies for reader in readers):
            await anyio.sleep(0.005)
        assert len(await watchers(redis)) == 1
        pipe = redis.pipeline(transaction=False)
        for key in keys:
            pipe.set(key, key, ex=60)
        await pipe.execute()


async def test_other_traffic_pushes_nothing(redis: Redis, redis_url: str, prefix: str) -> None:
    key = f"{prefix}:key"
    async with watching(redis_url) as watch, reading(watch, key) as reader:
        for n in range(200):
            await redis.xadd(f"{prefix}:audio", {"pcm": b"x"}, id=f"1-{n + 1}")
        await redis.expire(f"{prefix}:audio", 60)
        # The reconciliation of every second may fall into this; two hundred pushes would be more.
        assert len(reader.replies) < 20


async def test_the_read_is_made_anew_each_time(redis: Redis, redis_url: str, prefix: str) -> None:
    """As a stream's reader does: from where it left off."""
    key, last, heard = f"{prefix}:stream", ["-"], list[bytes]()
    got = anyio.Event()

    def take(reply: Reply) -> None:
        assert isinstance(reply, list)
        for entry, _ in reply:  # pyright: ignore
            if entry not in heard:
                heard.append(entry)
            last[0] = "(" + entry.decode()
        if len(heard) == 30:
            got.set()

    async with watching(redis_url) as watch:
        subscription: Subscription
        async with watch.subscribe(
            key, lambda: ("XRANGE", key, last[0], "+", "COUNT", 4), take
        ) as subscription:
            await subscription.seen.wait()
            for n in range(30):
                await redis.xadd(key, {"n": n}, id=f"1-{n + 1}")
            await redis.expire(key, 60)
            while not got.is_set():
                watch.refresh(subscription)
                await anyio.sleep(0.005)
    assert heard == [f"1-{n + 1}".encode() for n in range(30)]


async def test_keys_of_every_cluster_node(
    cluster: RedisCluster, cluster_url: str, prefix: str
) -> None:
    keys = [f"{prefix}:{{{name}}}" for name in "abcdef"]
    async with watching(cluster_url) as watch, anyio.create_task_group() as tasks:

        async def watch_one(key: str) -> None:
            async with reading(watch, key) as reader:
                await cluster.set(key, "1", ex=60)
                await reader.hears(b"1")

        for key in keys:
            tasks.start_soon(watch_one, key)


async def test_it_has_to_run(redis_url: str) -> None:
    async with connect(resolve(RedisConfig(url=redis_url))) as topology:
        with pytest.raises(RuntimeError, match="not running"):
            async with reading(KeyWatch(topology), "key"):
                pass
