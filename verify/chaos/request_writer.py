"""Writes a client's commands, repeats each until it is answered, and records every attempt.

The Redis client itself retries nothing, so that a lost reply is known to be lost.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import anyio
import msgspec
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from verify.chaos.journal import Asked, ControlSet, Journal, Wrote
from verify.chaos.script import Ask
from verify.chaos.utterances import Piece, Utterance
from voicefleet.schemas.keys import Keys
from voicefleet.wire.connect import Client

KEY_TTL_S: Final = 120
"""The TTL of each key that a client writes."""

_RETRY_S: Final = 0.1
_REFUSALS: Final = (ResponseError, BusyLoadingError, ClusterDownError)
"""Errors by which the server refused a command: it had no effect."""

_FAILURES: Final = (RedisError, RedisClusterException, OSError, TimeoutError)


class Order(msgspec.Struct, frozen=True):
    """A request, ready to be added any number of times."""

    session: str
    model: str
    ask: Ask
    fields: dict[str, str]
    text: str | None

    @classmethod
    def of(cls, session: str, main: str, ask: Ask, utterance: Utterance | None) -> "Order":
        """The entry for a request; deadlines count from now."""
        fields = {"session": session, "request": ask.request}
        if utterance is not None:
            fields |= utterance.fields
        if ask.lead_ms is not None:
            fields["lead_ms"] = str(ask.lead_ms)
        if ask.deadline_in_ms is not None:
            fields["deadline_ms"] = str(round(time.time() * 1000) + ask.deadline_in_ms)
        if ask.interrupt:
            fields["interrupt"] = "1"
        spoken = utterance is not None and not utterance.streamed
        return cls(
            session=session,
            model=main if utterance is None else utterance.model,
            ask=ask,
            fields=fields | ask.odd,
            text=utterance.pieces[0].text if utterance is not None and spoken else None,
        )

    def asked(self, at: float, entry: str | None, *, again: bool) -> Asked:
        """The journal's event for one attempt."""
        return Asked(
            at=at,
            session=self.session,
            request=self.ask.request,
            model=self.model,
            utterance=self.ask.utterance,
            fields=self.fields,
            entry=entry,
            again=again,
            invalid=self.ask.invalid,
        )


class RequestWriter:
    """Adds requests, writes text and sets control values for the clients of one run."""

    def __init__(self, client: Client, keys: Keys, journal: Journal) -> None:
        if not isinstance(client, RedisCluster):  # that one only follows redirections
            client.set_retry(Retry(NoBackoff(), 0))
        self._client: Any = client
        self._keys = keys
        self._journal = journal

    async def add(self, orders: Sequence[Order], *, again: bool = False) -> None:
        """Add requests in one pipeline for each model; those without an answer are sent again."""
        for model in dict.fromkeys(order.model for order in orders):
            left = [order for order in orders if order.model == model]
            while True:
                left = await self._add(model, left, again=again)
                if not left:
                    break
                await anyio.sleep(_RETRY_S)

    async def _add(self, model: str, orders: list[Order], *, again: bool) -> list[Order]:
        """Add them once; returns those that were not acknowledged."""
        at = time.monotonic()
        pipeline = self._client.pipeline(transaction=False)
        for order in orders:
            fields = order.fields if order.text is None else order.fields | {"text": order.text}
            flat = [part for item in fields.items() for part in item]
            pipeline.execute_command("XADD", self._keys.requests(model), "*", *flat)
        try:
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
        except _FAILURES as error:
            replies = [error] * len(orders)
        left: list[Order] = []
        for order, reply in zip(orders, replies, strict=True):
            if isinstance(reply, bytes):
                self._journal.write(order.asked(at, reply.decode(), again=again))
                continue
            left.append(order)
            if not isinstance(reply, _REFUSALS):
                self._journal.write(order.asked(at, None, again=again))
        return left

    async def control_value(self, session: str, value: str) -> None:
        """Set the session's control key; with an empty value, delete it."""
        key = self._keys.control(session)
        self._journal.write(ControlSet(at=time.monotonic(), session=session, value=value))
        if value:
            await self._until_done("SET", key, value, "EX", KEY_TTL_S)
        else:
            await self._until_done("DEL", key)

    async def write(
        self, session: str, request: str, pieces: Sequence[Piece], *, end: bool
    ) -> None:
        """Make sure that a text stream holds these pieces, and its end, once each.

        Entries get the ids 1-0, 2-0, ...: the server refuses one that is there already.
        """
        key = self._keys.text(session, request)
        entries = [_entry(piece) for piece in pieces] + ([{"end": "1"}] if end else [])
        found = await self._until_done("XREVRANGE", key, "+", "-", "COUNT", 1)
        there = int(found[0][0].split(b"-")[0]) if found else 0
        for index in range(there, len(entries)):
            flat = [part for item in entries[index].items() for part in item]
            if not await self._until_done("XADD", key, f"{index + 1}-0", *flat):
                continue
            ended = "end" in entries[index]
            self._journal.write(
                Wrote(
                    at=time.monotonic(), session=session, request=request, piece=index, ended=ended
                )
            )
        await self._until_done("EXPIRE", key, KEY_TTL_S)

    async def _until_done(self, *command: str | int) -> Any:
        """The reply; ``None`` where a stream has that entry already."""
        while True:
            try:
                return await self._client.execute_command(*command)
            except _FAILURES as error:
                if "equal or smaller" in str(error):
                    return None
                await anyio.sleep(_RETRY_S)


def _entry(piece: Piece) -> Mapping[str, str]:
    return {"text": piece.text, "flush": "1"} if piece.flush else {"text": piece.text}
