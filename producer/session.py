"""A session: one voice channel, whose turns are spoken one after another."""

import uuid
from collections.abc import AsyncIterable
from typing import TypedDict, Unpack

import msgspec

from voicefleet.producer.reading.cursor import Cursor
from voicefleet.producer.reading.listener import Listener
from voicefleet.producer.turn import Context, Order, StreamedTurn, Turn
from voicefleet.schemas import ControlValue, EntryId, Level, Request, SessionRecord, StopThrough
from voicefleet.schemas.control import decode as decode_control
from voicefleet.schemas.control import encode as encode_control
from voicefleet.schemas.records import decode as decode_record


class SpeakOptions(TypedDict, total=False):
    """How a turn is spoken. Options left out have the defaults of docs/protocol.md."""

    model: str
    """Required, unless the session has one."""
    voice: str
    mode: str
    instruct: str
    speed: float
    seed: int
    sample_rate: int
    lead_ms: int
    """How far ahead of real time frames are published; 0: as fast as they are made."""
    interrupt: bool
    """End what the session is speaking, and what waits in it, for this turn."""
    request: str
    """The turn's name. A name that was used before is not spoken again, only listened to."""
    traceparent: str
    start_within: float
    """Seconds from sending: a turn that has not started by then is not spoken."""
    deadline_ms: int
    """The same, as unix ms of the server's clock."""
    wait_for_worker: bool
    """Send the request even if no worker serves the model yet."""


_OF_THE_REQUEST = SpeakOptions.__annotations__.keys() & set(Request.__struct_fields__)


class Session:
    """One voice channel, by its id. A handle without state: make as many as you like::

    session = fleet.session("call-17", model="piper-en-joe")
    async for frame in session.speak("Hello."):
        play(frame.pcm)
    await session.pause()
    """

    def __init__(self, session: str, context: Context, *, model: str | None = None) -> None:
        self.id = session
        self._context = context
        self._model = model

    def __repr__(self) -> str:
        return f"<Session {self.id}>"

    def speak(self, text: str | AsyncIterable[str], **options: Unpack[SpeakOptions]) -> Turn:
        """Make a turn that speaks ``text``: a string, or its pieces as they come from an LLM.

        Nothing is sent yet: iterate the turn, await it, enter it, or call its ``send``.

        Raises:
            InvalidRequest: A value is outside the protocol's limits.
            ValueError: Neither the call nor the session names a model.
        """
        if isinstance(text, str):
            return Turn(self._context, self._order(text, options))
        return Turn(self._context, self._order(None, options), pieces=text)

    def stream(self, **options: Unpack[SpeakOptions]) -> StreamedTurn:
        """Make a turn whose text is written while it is spoken. Raises as ``speak``."""
        return StreamedTurn(self._context, self._order(None, options))

    def _order(self, text: str | None, options: SpeakOptions) -> Order:
        model = options.get("model", self._model)
        if not model:
            raise ValueError("name a model: speak(..., model=...)")
        request = Request(session=self.id, request=uuid.uuid4().hex, text=text, stream=text is None)
        spoken = {name: value for name, value in options.items() if name in _OF_THE_REQUEST}
        request = msgspec.structs.replace(request, **spoken)
        return Order(
            model=model,
            request=request,
            start_within=options.get("start_within"),
            wait_for_worker=options.get("wait_for_worker", False),
            resent="request" in options,
        )

    async def pause(self) -> None:
        """Publish no further frame, until ``resume`` or the worker's ``pause_timeout_s``.

        The session resumes by itself an hour after the last control value or turn of it.
        """
        await self._control(Level.PAUSE)

    async def resume(self) -> None:
        """Go on with the very next frame. Takes back ``pause``, and ``stop`` of the session."""
        await self._control(Level.RESUME)

    async def stop(self, request: str | None = None) -> None:
        """End the turn ``request`` and those added before it; without one, all of them.

        Without ``request`` it holds on: turns that are added later end too, until ``resume``.
        To interrupt for something new, use ``speak(..., interrupt=True)``.
        """
        await self._control(Level.STOP if request is None else StopThrough(request))

    async def _control(self, value: ControlValue) -> None:
        # The key is a level: with a TTL, a forgotten value does not hold for ever. When it expires
        # the session is resumed; so it outlives every pause and every wait.
        context, key = self._context, self._context.keys.control(self.id)
        await context.redis.set(key, encode_control(value), ttl_s=context.key_ttl_s)

    async def control_value(self) -> ControlValue:
        """What the control key says now.

        Raises:
            FieldError: It says something that the protocol does not know.
        """
        return decode_control(
            await self._context.redis.call("GET", self._context.keys.control(self.id))
        )

    async def state(self) -> SessionRecord | None:
        """The session's record; ``None``: the fleet knows no such session."""
        fields = await self._context.redis.hash(self._context.keys.session(self.id))
        return decode_record(SessionRecord, fields) if fields else None

    def listen(
        self, *, after: EntryId | str | None = None, from_turn: int | None = None
    ) -> Listener:
        """Listen to all of the session's audio, whoever asked for the turns.

        Args:
            after: The id of the last entry seen (``"3-17"``), or ``"$"``: only what comes from now
                on. Without ``after`` and ``from_turn`` the oldest entry that is kept comes first.
            from_turn: Begin with the first entry of this turn.

        Raises:
            ValueError: Both are given, or ``after`` is no entry id.
        """
        place = after if from_turn is None else Cursor.before_turn(from_turn)
        if from_turn is not None and after is not None:
            raise ValueError("give after or from_turn, not both")
        if isinstance(place, str) and place != "$":
            place = EntryId.parse(place)
        return Listener(
            self._context.redis,
            self._context.readers,
            self._context.keys.audio(self.id),
            place,
        )
