"""How a script is called: its KEYS and ARGV as named fields, its reply as a value."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Annotated, ClassVar, Generic, NamedTuple, Self, TypeAlias, TypeVar, cast

import msgspec

from voicefleet.schemas.keys import Keys
from voicefleet.wire.link import Argument, Command, Reply, ReplyError
from voicefleet.wire.router import Router
from voicefleet.worker.store.lease_states import Claim

T = TypeVar("T")

Key: TypeAlias = Annotated[str, "KEYS"]
OptionalKey: TypeAlias = Annotated[str | None, "KEYS"]


class SessionKeys(NamedTuple):
    """The keys of one session that its scripts touch, in the order of their KEYS."""

    lease: str
    audio: str
    session: str
    spoken: str
    refused: str

    @classmethod
    def of(cls, keys: Keys, session: str) -> Self:
        """Name the keys of a session."""
        return cls(*(getattr(keys, name)(session) for name in cls._fields))


class OrderKeys(NamedTuple):
    """A model's queue, and the set that says to which session each entry belongs."""

    requests: str
    order: str

    @classmethod
    def of(cls, keys: Keys, model: str) -> Self:
        """Name the keys of a model."""
        return cls(keys.requests(model), keys.order(model))


class BacklogKeys(NamedTuple):
    """A model's queue, its wake key, and the keys that say who of the backlog is next."""

    requests: str
    wake: str
    backlog: str
    books: str
    ranks: str

    @classmethod
    def of(cls, keys: Keys, model: str) -> Self:
        """Name the keys of a model."""
        return cls(*(getattr(keys, name)(model) for name in cls._fields))


_KEY_TYPES = (Key, OptionalKey, SessionKeys, OrderKeys, OrderKeys | None, BacklogKeys)
_PLAIN = {str, int, bytes, Claim}


class Script:
    """The source of one script, ``worker/store/lua/<name>.lua``, behind the files in ``after``."""

    def __init__(self, name: str, *, after: Sequence[str] = ()) -> None:
        self.name = name
        folder = resources.files("voicefleet.worker.store").joinpath("lua")
        parts = (folder.joinpath(f"{part}.lua") for part in (*after, name))
        self.source = "".join(part.read_text("utf-8") for part in parts)
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


class Call(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """One call of a script. The fields of a subclass are the script's contract.

    Fields of type ``Key``, or a tuple of keys, are its KEYS, all others its ARGV, in this order;
    the header of the ``.lua`` file names the same. ``None`` leaves out a key, and is an empty
    string in ARGV. ``True`` is 1. Sequences and mappings come last and are written out.

    Every script may run twice with one result, so a call whose reply was lost is sent again.
    """

    script: ClassVar[Script]

    def key_list(self) -> Sequence[str]:
        """KEYS, all in one Cluster slot."""
        names, _ = _field_names(type(self))
        found: list[str] = []
        for name in names:
            value: str | Sequence[str] | None = getattr(self, name)
            found += () if value is None else (value,) if isinstance(value, str) else value
        return found

    def argv(self) -> Sequence[Argument]:
        """ARGV, as Redis is given them."""
        _, names = _field_names(type(self))
        found: list[Argument] = []
        for name in names:
            value: object = getattr(self, name)
            if type(value) in _PLAIN:
                found.append(cast(Argument, value))
            elif isinstance(value, bool):
                found.append(int(value))
            elif value is None:
                found.append("")
            elif isinstance(value, Mapping):
                for pair in cast(Mapping[str, Argument], value).items():
                    found += pair
            else:
                found += cast(Sequence[Argument], value)
        return found

    def command(self) -> Command:
        """The EVALSHA command, for a ``Link``; a server may not know the script (NOSCRIPT)."""
        keys = self.key_list()
        return ("EVALSHA", self.script.sha, len(keys), *keys, *self.argv())

    @staticmethod
    def decode(reply: Reply) -> T:
        """Read the script's reply."""
        return cast(T, reply)

    async def run(self, router: Router) -> T:
        """Run the script, loading it first where the server does not know it.

        Waits and raises as ``Router.call``.
        """
        command = self.command()
        key = str(command[3])
        try:
            reply = await router.call(key, *command)
        except ReplyError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
            reply = await router.call(key, "EVAL", self.script.source, *command[2:])
        return self.decode(reply)

    async def run_on_queue(self, router: Router) -> T | None:
        """Run it; ``None`` where the queue is gone, or a key of another type is in its place."""
        try:
            return await self.run(router)
        except ReplyError as error:
            if not str(error).startswith(("NOGROUP", "WRONGTYPE")):
                raise
            return None


class Flag(Call[bool], frozen=True):
    """A call whose script replies 1 or 0."""

    @staticmethod
    def decode(reply: Reply) -> bool:
        """Read the script's reply."""
        return reply == 1


@cache
def _field_names(kind: type[Call[object]]) -> tuple[list[str], list[str]]:
    """The names of the fields that are KEYS, and of those that are ARGV."""
    fields = msgspec.structs.fields(kind)
    keys = [field.name for field in fields if field.type in _KEY_TYPES]
    return keys, [field.name for field in fields if field.name not in keys]
