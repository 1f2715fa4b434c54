"""A turn: one request and the audio that answers it."""

import weakref
from collections.abc import AsyncIterable, Awaitable, Callable, Generator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import anyio
import msgspec
from anyio.abc import TaskGroup

from voicefleet.producer.errors import (
    StreamGap,
    TurnEnded,
    UnknownModel,
    VoiceFleetError,
    raise_for_end,
)
from voicefleet.producer.reading.cursor import Cursor, first
from voicefleet.producer.reading.reader import Readers
from voicefleet.producer.reading.subscription import Subscription
from voicefleet.producer.redis_client import RedisClient
from voicefleet.producer.text import TextWriter, pump
from voicefleet.schemas import AudioEntry, End, EntryId, Frame, Keys, Request, Start, TextPiece

FAREWELL_S = 1.0
"""How long a cancelled block may take to stop its turn."""


class Context(msgspec.Struct, frozen=True):
    """What the turns of one client share."""

    redis: RedisClient
    readers: Readers
    tasks: TaskGroup
    keys: Keys
    key_ttl_s: int
    served: Callable[[], Awaitable[tuple[str, ...]]]


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A request and how to send it."""

    model: str
    request: Request
    start_within: float | None = None
    wait_for_worker: bool = False
    resent: bool = False
    """The name may have been used before: look for the turn in all the audio that is kept."""


class _Own:
    """Picks the entries of one request from its session's stream."""

    def __init__(self, request: str) -> None:
        self._request = request
        self._turn: int | None = None
        self.end: End | None = None

    def __call__(self, entry: AudioEntry) -> bool:
        if self._turn is None and not isinstance(entry, Frame) and entry.request == self._request:
            if isinstance(entry, End) and entry.frames > 0:
                raise StreamGap(EntryId(entry.id.turn, 0), entry.id)
            self._turn = entry.id.turn
        if entry.id.turn != self._turn:
            return False
        if isinstance(entry, End):
            self.end = entry
        return True


class Turn:
    """One request and its audio. Iterate it for its frames, or await it for its end::

        turn = session.speak("Hello.")
        async for frame in turn:
            play(frame.pcm)
        print(turn.end.reason)  # completed, stopped or interrupted

    It is sent when it is first iterated, awaited or entered, or by ``send``. Turns of a session
    are spoken one after another in the order in which they were sent.

    Iteration ends when the turn is completed, stopped or interrupted (``end`` says which), and
    raises ``TurnRejected``, ``TurnExpired`` or ``TurnFailed`` otherwise. It may be broken off and
    taken up again: frames that are not taken stay in Redis, for at least the worker's
    ``audio_window_s``.

    As a context manager it stops the turn when an exception, cancellation among them, leaves the
    block::

        async with session.speak("Hello.") as turn:
            async for frame in turn:
                await websocket.send(frame.pcm)  # if it raises, the turn is stopped

    Raises on iteration:
        TurnError: The turn was rejected, expired or failed.
        StreamGap: Frames were trimmed before they were read.
        ServerUnreachable: There was no connection for the client's ``reconnect_for`` seconds.
    """

    def __init__(
        self, context: Context, order: Order, *, pieces: AsyncIterable[str] | None = None
    ) -> None:
        order.request.validate()
        self._context = context
        self._order = order
        self._pieces = pieces
        self._sending = anyio.Lock()
        self._may_be_known = order.resent
        self._own = _Own(order.request.name)
        self._subscription: Subscription | None = None
        self._start: Start | None = None
        self._end: End | None = None
        self._text = TextWriter(
            context.redis,
            context.keys.text(order.request.session, order.request.name),
            ttl_s=context.key_ttl_s,
        )

    def __repr__(self) -> str:
        state = self._end.reason if self._end else "started" if self._start else "not started"
        return f"<{type(self).__name__} {self.session}/{self.request} {state}>"

    @property
    def session(self) -> str:
        """The session's id."""
        return self._order.request.session

    @property
    def request(self) -> str:
        """The turn's name, unique in the session."""
        return self._order.request.name

    @property
    def start(self) -> Start | None:
        """The turn's start entry, ``None`` until the first frame is yielded."""
        return self._start

    @property
    def end(self) -> End | None:
        """The turn's end entry, ``None`` until iteration is over."""
        return self._end

    @property
    def over(self) -> bool:
        """Whether the turn has ended, though its last frames may not have been iterated yet."""
        return self._own.end is not None

    async def send(self) -> Self:
        """Add the request to the model's queue, once.

        Returns when the request is in Redis. If the reply is lost, the request is sent again: the
        fleet speaks a name once.

        Raises:
            UnknownModel: No worker serves the model, and the turn does not wait for one.
            ServerUnreachable, ServerRefused: It could not be sent.
        """
        async with self._sending:
            if self._subscription is None:
                await self._send()
        return self

    async def _send(self) -> None:
        context, order, request = self._context, self._order, self._order.request
        audio = context.keys.audio(request.session)
        served, tail, _ = await context.redis.batch(
            [
                ("EXISTS", context.keys.model(order.model)),
                ("XREVRANGE", audio, "+", "-", "COUNT", 1),
                ("EXPIRE", context.keys.control(request.session), context.key_ttl_s),
            ]
        )
        if not served and not order.wait_for_worker:
            raise UnknownModel(order.model, await context.served())
        if order.start_within is not None:
            seconds, micros = await context.redis.call("TIME")
            now = seconds * 1000 + micros // 1000
            deadline = now + round(order.start_within * 1000)
            request = msgspec.structs.replace(request, deadline_ms=deadline)
        searching = self._may_be_known
        cursor = Cursor.after(None if searching else first(tail))
        subscription = Subscription(audio, cursor, self._own, searching=searching)
        self._may_be_known = True
        await context.redis.add(context.keys.requests(order.model), "*", request.encode())
        await context.readers.subscribe(subscription)
        # If the caller drops the turn, reading for it ends.
        weakref.finalize(self, subscription.close)
        self._subscription = subscription
        if self._pieces is not None:
            own = self._own
            context.tasks.start_soon(
                *(pump, self._pieces, self._text, subscription),
                *(lambda: own.end is not None, self._stopper()),
            )

    def _stopper(self) -> Callable[[], Awaitable[None]]:
        """``stop`` without a reference to the turn, for tasks that may outlive it."""
        context, session, request = self._context, self.session, self.request

        async def stop() -> None:
            key = context.keys.control(session)
            await context.redis.set(key, f"stop:{request}", ttl_s=context.key_ttl_s)

        return stop

    async def stop(self) -> None:
        """End this turn, and every turn of the session that was added before it."""
        await self._stopper()()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame:
        while self._end is None:
            if self._subscription is None:
                await self.send()
                continue
            match await self._context.readers.next(self._subscription):
                case Frame() as frame:
                    return frame
                case Start() as start:
                    self._start = start
                case End() as end:
                    self._end = end
                    self._subscription.close()
                    raise_for_end(end)
        raise StopAsyncIteration

    async def wait(self) -> End:
        """Send the turn, drop its frames, and return its end; ``await turn`` does the same.

        Raises:
            TurnError: It was rejected, expired or failed.
        """
        async for _ in self:
            pass
        assert self._end is not None
        raise_for_end(self._end)
        return self._end

    def __await__(self) -> Generator[Any, None, End]:
        return self.wait().__await__()

    async def __aenter__(self) -> Self:
        try:
            return await self.send()
        except anyio.get_cancelled_exc_class():  # the request may have been sent
            await self._abandon()
            raise

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None and self._own.end is None:
            await self._abandon()

    async def _abandon(self) -> None:
        if self._subscription is not None:
            self._subscription.close()
        with anyio.move_on_after(FAREWELL_S, shield=True), suppress(VoiceFleetError):
            await self.stop()


class StreamedTurn(Turn):
    """A turn whose text is written while it is spoken::

        async with anyio.create_task_group() as tasks, session.stream() as turn:
            tasks.start_soon(play, turn)  # iterates it
            async for token in language_model():
                await turn.write(token)

    Entering sends the request; leaving the block ends the text. Frames are iterated by another
    task meanwhile, or after the block.
    """

    async def write(self, text: str) -> None:
        """Add text. Pieces may be cut anywhere, in words too; the fleet finds the sentences.

        Raises:
            TurnEnded: The turn has ended: it was stopped or interrupted, or it failed.
            anyio.ClosedResourceError: ``end_text`` was called before.
        """
        if text:
            await self._write(TextPiece(text))

    async def flush(self) -> None:
        """Have all text up to here spoken without waiting for more. Raises as ``write``."""
        await self._write(TextPiece(flush=True))

    async def end_text(self) -> None:
        """Say that no more text comes; the turn ends when all is spoken. May be called again."""
        if not self._text.ended and self._own.end is None:
            await self._write(TextPiece(end=True))

    async def _write(self, piece: TextPiece) -> None:
        if self._own.end is not None:
            raise TurnEnded(self._own.end)
        if self._text.ended:
            raise anyio.ClosedResourceError
        await self.send()
        await self._text.write(piece)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is None:
            await self.end_text()
        await super().__aexit__(exc_type, exc, traceback)
