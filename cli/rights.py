"""What the doctor finds about a user's rights: do they suffice for what the user is meant for?"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from voicefleet.cli import permissions
from voicefleet.cli.finding import Finding, Findings
from voicefleet.cli.permissions import Attempt
from voicefleet.producer.client import VoiceFleet
from voicefleet.producer.errors import ServerRefused, VoiceFleetError, translated
from voicefleet.wire.link import Argument, Link, ReplyError


async def rights(fleet: VoiceFleet) -> Findings:
    """Whether this user may do all that clients do, that workers do, or that reading takes.

    A user that may add requests is meant for clients, one that may write leases for workers; one
    user may be both. One that may do neither is an observer.
    """
    clients, workers, observers = permissions.parts(fleet.keys)
    async with _links(fleet) as link_to:

        async def may(attempt: Attempt) -> bool:
            link = await link_to(attempt.key or fleet.keys.workers)
            return not await is_refused(link, attempt.words)

        meant = [part for part in (clients, workers) if await may(part.attempts[0])]
        meant = meant or [observers]
        refused = [one for part in meant for one in part.attempts if not await may(one)]
    user = await _user(fleet)
    if refused:
        names = ", ".join(dict.fromkeys(attempt.name for attempt in refused))
        advice = f"ACL SETUSER {user} {_grants(refused)}"
        yield Finding("fail", f"user {user} may not: {names}", advice)
    else:
        names = " and ".join(part.name for part in meant)
        yield Finding("ok", f"user {user} may do all that {names} do")
    if clients in meant:
        try:
            await fleet.redis.call("CLIENT UNBLOCK", 0)
        except ServerRefused:
            found = "CLIENT UNBLOCK is refused: the client makes a connection for each new session"
            yield Finding("warn", found, f"ACL SETUSER {user} +client|unblock")


def _grants(refused: Sequence[Attempt]) -> str:
    """The rules that would give what is missing, and no more."""
    by_pattern: dict[str, dict[str, None]] = {}
    for attempt in refused:
        grant = f"+{attempt.name.lower().replace(' ', '|')}"
        by_pattern.setdefault(attempt.pattern, {})[grant] = None
    return " ".join(
        f'"(~{pattern} {" ".join(grants)})"' if pattern else " ".join(grants)
        for pattern, grants in by_pattern.items()
    )


@asynccontextmanager
async def _links(fleet: VoiceFleet) -> AsyncGenerator[Callable[[str], Awaitable[Link]]]:
    """Raw connections to the servers that own keys: redis-py would read odd replies for us."""
    topology = fleet.redis.topology
    links: dict[tuple[str, int], Link] = {}

    async def link_to(key: str) -> Link:
        owner = topology.owner(key)
        if owner not in links:
            links[owner] = await topology.open_link(owner)
        return links[owner]

    with translated(fleet.redis.endpoint):
        try:
            yield link_to
        finally:
            for link in links.values():
                link.close()


async def is_refused(link: Link, command: Sequence[Argument]) -> bool:
    """Whether the user has no right to a command; any other error is none of rights."""
    (reply,) = await link.batch([command])
    return isinstance(reply, ReplyError) and str(reply).startswith("NOPERM")


async def _user(fleet: VoiceFleet) -> str:
    try:
        name: bytes = await fleet.redis.call("ACL WHOAMI")
    except VoiceFleetError:
        return fleet.redis.endpoint.username or "default"
    return name.decode()
