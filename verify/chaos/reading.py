"""Reads the audio streams of many sessions at little cost, through all server faults.

One lane per server reads the sessions whose streams it has. Standalone and Sentinel: one XREAD for
all of them. Cluster: a pipeline with one XREAD per key, which follows redirections.
"""

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final, Protocol, cast

import anyio
import msgspec

from verify.chaos.stream_id import NOWHERE, Id
from voicefleet.schemas.keys import Keys
from voicefleet.wire.connect import Address, Topology
from voicefleet.wire.link import Argument, Command, Link, LinkClosedError, Reply, ReplyError

ROUND_S: Final = 0.02
"""The shortest time between two reads of a lane."""

PROBE_S: Final = 1.0
OUTAGE_S: Final = 0.3
"""A lane without an answer for longer reports an outage."""

COUNT: Final = 500
KEPT: Final = 4000
"""Entries remembered per session: more than the fleet may have to write again."""

_BLOCK_MS: Final = 200
_ANSWER_S: Final = 1.0
_RETRY_S: Final = 0.05
_ELSEWHERE: Final = ("ASK ", "MOVED ")


class Entry(msgspec.Struct, frozen=True):
    """An entry of a stream."""

    id: Id
    fields: dict[bytes, bytes]


class Listener(Protocol):
    """Receives what is read. All calls come from the event loop and must return at once."""

    def heard(self, session: str, entries: Sequence[Entry]) -> None:
        """The stream's next entries."""
        ...

    def rolled_back(self, session: str, seen: Id, newest: Id | None) -> None:
        """The stream lacks entries that were read, or has others in their place.

        ``newest`` is ``None`` if the stream is gone. Entries that are unchanged are not read again.
        """
        ...

    def outage(self, at: float, until: float) -> None:
        """A server could not be read in this time (monotonic clock)."""
        ...


class Reading:
    """Reads all sessions for one listener until it is cancelled."""

    def __init__(
        self, topology: Topology, keys: Keys, sessions: Iterable[str], listener: Listener
    ) -> None:
        self._topology = topology
        self._listener = listener
        self._places = [_Place(session, keys.audio(session)) for session in sessions]
        self._lanes: set[Address] = set()

    async def run(self) -> None:
        """Read on while servers go away and come back."""
        async with anyio.create_task_group() as lanes:
            while True:
                for address in {self._topology.owner(place.key) for place in self._places}:
                    if address not in self._lanes:
                        self._lanes.add(address)
                        lanes.start_soon(self._lane, address)
                await anyio.sleep(PROBE_S / 2)
                with suppress(LinkClosedError):  # no server answers: keep the old picture
                    await self._topology.refresh()

    async def _lane(self, address: Address) -> None:
        lane = _Lane(self._topology, address, self._places, self._listener)
        try:
            while lane.group:
                try:
                    await lane.round()
                except (LinkClosedError, ReplyError):
                    lane.close()
                    await anyio.sleep(_RETRY_S)
        finally:
            lane.close()
            self._lanes.discard(address)


class _Place:
    """How far a session was read, and its latest entries."""

    def __init__(self, session: str, key: str) -> None:
        self.session = session
        self.key = key
        self.cursor = NOWHERE
        self.anchor = NOWHERE
        """An earlier cursor. The entry there tells whether it is still the same stream."""
        self._recent: dict[Id, int] = {}

    def take(self, entries: Sequence[Entry]) -> list[Entry]:
        """Move the cursor; returns the entries that were not read before."""
        new = [entry for entry in entries if entry.id > self.cursor]
        for entry in new:
            self._recent[entry.id] = _fingerprint(entry)
        if new:
            self.cursor = new[-1].id
            if self.anchor == NOWHERE:
                self.anchor = new[0].id
        while len(self._recent) > KEPT:
            del self._recent[next(iter(self._recent))]
        return new

    def knows(self, entry: Entry | None) -> bool:
        """Whether this very entry was read."""
        return entry is not None and self._recent.get(entry.id) == _fingerprint(entry)

    def fall_back(self, to: Id) -> None:
        """Read again from ``to`` on."""
        self.cursor = self.anchor = to
        self._recent = {one: mark for one, mark in self._recent.items() if one <= to}


class _Lane:
    """The connection to one server, and the sessions that are read there."""

    def __init__(
        self,
        topology: Topology,
        address: Address,
        places: Sequence[_Place],
        listener: Listener,
    ) -> None:
        self._topology = topology
        self._address = address
        self._places = places
        self._listener = listener
        self._link: Link | None = None
        self._others: dict[Address, Link] = {}
        self._answered_at = time.monotonic()
        self._probe_at = 0.0

    @property
    def group(self) -> list[_Place]:
        """The sessions whose streams this server has, as far as is known."""
        owner = self._topology.owner
        return [place for place in self._places if owner(place.key) == self._address]

    async def round(self) -> None:
        """Read once; every ``PROBE_S``, check for losses as well. Raises as ``Link.batch``."""
        began = time.monotonic()
        group = self.group
        if self._link is None or self._link.closed:
            self._link = await self._open(self._address)
            self._probe_at = 0.0  # another server may have taken its place
        if began >= self._probe_at:
            await self._probe(group)
            self._probe_at = began + PROBE_S
        await (self._read_each(group) if self._topology.is_sharded else self._read_all(group))
        now = time.monotonic()
        if now - self._answered_at > OUTAGE_S:
            self._listener.outage(self._answered_at, now)
        self._answered_at = now
        await anyio.sleep(max(0.0, began + ROUND_S - now))

    def close(self) -> None:
        """Drop the connections."""
        for link in (self._link, *self._others.values()):
            if link is not None:
                link.close()
        self._link = None
        self._others.clear()

    async def _open(self, address: Address) -> Link:
        try:
            with anyio.fail_after(_ANSWER_S):
                return await self._topology.open_link(address)
        except TimeoutError:
            raise LinkClosedError(f"no answer from {address[0]}:{address[1]}") from None

    async def _read_all(self, group: Sequence[_Place]) -> None:
        assert self._link is not None
        keys: list[Argument] = [place.key for place in group]
        cursors: list[Argument] = [str(place.cursor) for place in group]
        reply = await self._link.call(
            *("XREAD", "COUNT", COUNT, "BLOCK", _BLOCK_MS, "STREAMS", *keys, *cursors),
            timeout_s=_ANSWER_S,
        )
        streams = cast(dict[bytes, Reply], reply or {})
        for place in group:
            self._take(place, _entries(streams.get(place.key.encode())))

    async def _read_each(self, group: Sequence[_Place]) -> None:
        read = [
            ("XREAD", "COUNT", COUNT, "STREAMS", place.key, str(place.cursor)) for place in group
        ]
        for place, reply in zip(group, await self._batch(read), strict=True):
            if isinstance(reply, dict):
                self._take(place, _entries(cast(dict[bytes, Reply], reply)[place.key.encode()]))

    def _take(self, place: _Place, entries: Sequence[Entry]) -> None:
        new = place.take(entries)
        if new:
            self._listener.heard(place.session, new)

    async def _probe(self, group: Sequence[_Place]) -> None:
        """Compare each stream's newest entry, and an earlier one, with what was read."""
        read = [place for place in group if place.cursor > NOWHERE]
        commands: list[Command] = []
        for place in read:
            anchor = str(place.anchor)
            commands.append(("XREVRANGE", place.key, "+", "-", "COUNT", 1))
            commands.append(("XRANGE", place.key, anchor, anchor))
        replies = await self._batch(commands) if commands else []
        for place, said, anchored in zip(read, replies[::2], replies[1::2], strict=True):
            if isinstance(said, ReplyError) or isinstance(anchored, ReplyError):
                continue
            newest = _one(said)
            if newest is None or newest.id < place.cursor or not place.knows(_one(anchored)):
                await self._fall_back(place, newest)
            else:
                place.anchor = place.cursor

    async def _fall_back(self, place: _Place, newest: Entry | None) -> None:
        """The stream has lost entries: find out which are left."""
        seen = place.cursor
        kept = newest is not None and newest.id < seen and place.knows(newest)
        if newest is not None and kept and b"pcm" in newest.fields:
            # The same frames may belong to a turn that began again: its start entry tells.
            start = f"{newest.id.turn}-0"
            (reply,) = await self._batch([("XRANGE", place.key, start, start)])
            kept = not isinstance(reply, ReplyError) and place.knows(_one(reply))
        place.fall_back(newest.id if newest is not None and kept else NOWHERE)
        self._listener.rolled_back(place.session, seen, None if newest is None else newest.id)

    async def _batch(self, commands: Sequence[Command]) -> list[Reply]:
        """All replies. Commands that a Cluster redirects are sent to the server it names."""
        assert self._link is not None
        replies = await self._link.batch(commands, timeout_s=_ANSWER_S)
        for index, reply in enumerate(replies):
            if not isinstance(reply, ReplyError):
                continue
            if not str(reply).startswith(_ELSEWHERE):
                raise reply
            host, _, port = str(reply).split()[-1].rpartition(":")
            replies[index] = await self._ask_at((host, int(port)), commands[index])
        return replies

    async def _ask_at(self, address: Address, command: Command) -> Reply:
        link = self._others.get(address)
        if link is None or link.closed:
            link = self._others[address] = await self._open(address)
        return (await link.batch([("ASKING",), command], timeout_s=_ANSWER_S))[1]


def _one(reply: Reply) -> Entry | None:
    return next(iter(_entries(reply)), None)


def _entries(reply: Reply) -> list[Entry]:
    raw = cast(list[tuple[bytes, list[bytes]]], reply or [])
    return [
        Entry(Id.parse(entry.decode()), dict(zip(flat[::2], flat[1::2], strict=True)))
        for entry, flat in raw
    ]


def _fingerprint(entry: Entry) -> int:
    return hash(tuple(entry.fields.items()))
