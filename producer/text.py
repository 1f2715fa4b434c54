"""Writes text while it is being spoken, to the stream ``tts:text:{<S>}:<request>``."""

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import aclosing, nullcontext, suppress
from typing import cast

import anyio

from voicefleet.producer.errors import ServerRefused, VoiceFleetError
from voicefleet.producer.reading.subscription import Subscription
from voicefleet.producer.redis_client import RedisClient
from voicefleet.schemas import TextPiece
from voicefleet.schemas.request import MAX_TEXT


class TextWriter:
    """Appends pieces to one text stream, each exactly once.

    Entries get the ids ``1-0``, ``2-0``, ...: if a reply is lost and the command is sent again, the
    server refuses the second copy. A worker's own entries go in between (``2-1``).
    """

    def __init__(self, redis: RedisClient, key: str, *, ttl_s: int) -> None:
        self._redis = redis
        self._key = key
        self._ttl_s = ttl_s
        self._count = 0
        self._in_order = anyio.Lock()
        self.ended = False

    async def write(self, piece: TextPiece) -> None:
        """Append ``piece``. Text that is too long for one entry goes into several."""
        async with self._in_order:
            text = piece.text
            while len(text) > MAX_TEXT:
                await self._append(TextPiece(text[:MAX_TEXT]))
                text = text[MAX_TEXT:]
            await self._append(TextPiece(text, flush=piece.flush, end=piece.end))
            self.ended = self.ended or piece.end

    async def _append(self, piece: TextPiece) -> None:
        self._count += 1
        entry = f"{self._count}-0"
        fields = piece.encode()
        flat = [part for item in fields.items() for part in item]
        try:
            await self._redis.batch(
                [("XADD", self._key, entry, *flat), ("EXPIRE", self._key, self._ttl_s)]
            )
        except ServerRefused as refusal:
            if "equal or smaller" not in str(refusal):
                raise
            there = await self._redis.call("XRANGE", self._key, entry, entry)
            if not there or there[0][1] != {k.encode(): v for k, v in fields.items()}:
                raise


async def pump(
    pieces: AsyncIterable[str],
    writer: TextWriter,
    subscription: Subscription,
    over: Callable[[], bool],
    stop: Callable[[], Awaitable[None]],
) -> None:
    """Write what ``pieces`` yields, then the end; stop early once the turn is ``over``.

    If ``pieces`` raises, the turn is stopped and whoever iterates it gets the error.
    """
    closing = aclosing(cast(AsyncGenerator[str], pieces)) if hasattr(pieces, "aclose") else None
    try:
        async with closing or nullcontext():
            async for text in pieces:
                if over() or subscription.closed:
                    return
                if text:
                    await writer.write(TextPiece(text))
        await writer.write(TextPiece(end=True))
    except Exception as error:  # the caller's iterator may raise anything
        subscription.fail(error)
        with suppress(VoiceFleetError):
            await stop()
