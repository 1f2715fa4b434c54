"""``VoiceFleet``: the client of a fleet."""

import uuid
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import AsyncExitStack, aclosing
from types import TracebackType
from typing import Self, Unpack

import anyio

from voicefleet.producer.discovery import Capacity, Discovery, Worker
from voicefleet.producer.reading.reader import Readers
from voicefleet.producer.redis_client import RedisClient
from voicefleet.producer.session import Session, SpeakOptions
from voicefleet.producer.turn import Context, Turn
from voicefleet.schemas import Keys, ModelRecord, SessionRecord
from voicefleet.wire.endpoint import RedisConfig, resolve

CONTROL_TTL_S = 3600
"""TTL of the control and text keys that the client writes; each use renews it."""


class VoiceFleet:
    """An async client of the fleet::

        async with VoiceFleet("redis://127.0.0.1:6379") as fleet:
            async for frame in fleet.speak("Hello.", model="piper-en-joe"):
                play(frame.pcm)  # 20 ms, 16 bit, mono, 48 kHz

    One client serves any number of sessions, over one connection for reading (in a Cluster one
    for each session that is listened to) and a few for commands. It connects again after a lost
    connection, and reading goes on where it was. A client belongs to one event loop.

    Args:
        url: ``redis://``, ``rediss://``, ``redis+sentinel://``, ``redis+cluster://``, or a
            ``RedisConfig`` with credentials and certificates.
        prefix: The fleet's key prefix; by default that of the config, ``tts``.
        reconnect_for: After so many seconds without a connection, those who iterate turns and
            listeners get ``ServerUnreachable``.

    Raises on entering:
        ServerUnreachable: No server answers.
        ServerRefused: The credentials are wrong.
    """

    def __init__(
        self,
        url: str | RedisConfig = "redis://127.0.0.1:6379",
        *,
        prefix: str | None = None,
        reconnect_for: float = 60.0,
    ) -> None:
        config = RedisConfig(url=url) if isinstance(url, str) else url
        self._endpoint = resolve(config)
        self._keys = Keys(config.prefix if prefix is None else prefix)
        self._reconnect_for = reconnect_for
        self._entered: tuple[Context, Discovery] | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            redis = await stack.enter_async_context(RedisClient.open(self._endpoint))
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            discovery = Discovery(redis, self._keys)

            async def served() -> tuple[str, ...]:
                return tuple(await discovery.models())

            context = Context(
                redis=redis,
                readers=Readers(redis, tasks, give_up_after=self._reconnect_for),
                tasks=tasks,
                keys=self._keys,
                key_ttl_s=CONTROL_TTL_S,
                served=served,
            )
            self._entered = context, discovery
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered = None
        # The task group must not see the block's exception: it would wrap it in a group.
        await self._stack.aclose()

    @property
    def _open(self) -> tuple[Context, Discovery]:
        if self._entered is None:
            raise RuntimeError("the client is not open: use it inside `async with VoiceFleet(...)`")
        return self._entered

    @property
    def redis(self) -> RedisClient:
        """The commands under this client, for what it does not offer itself."""
        return self._open[0].redis

    @property
    def keys(self) -> Keys:
        """The names of the fleet's keys."""
        return self._keys

    def session(self, session: str | None = None, *, model: str | None = None) -> Session:
        """The session of this id; without one, a new session. ``model`` is its turns' default."""
        return Session(session or f"s-{uuid.uuid4().hex}", self._open[0], model=model)

    def speak(self, text: str | AsyncIterable[str], **options: Unpack[SpeakOptions]) -> Turn:
        """Make a turn in a new session of its own. See ``Session.speak``."""
        return self.session().speak(text, **options)

    async def workers(self) -> list[Worker]:
        """All live workers, by name."""
        return await self._open[1].workers()

    async def models(self) -> dict[str, ModelRecord]:
        """What the live workers serve, by model id."""
        return await self._open[1].models()

    async def capacity(self, model: str) -> Capacity:
        """Slots and load of ``model``, over all ready workers."""
        return await self._open[1].capacity(model)

    async def sessions(self) -> AsyncGenerator[tuple[str, SessionRecord]]:
        """Every session that has a record, in no order."""
        async with aclosing(self._open[1].sessions()) as found:
            async for item in found:
                yield item
