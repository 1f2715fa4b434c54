"""The doctor's check of the user's permissions on the server."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from voicefleet.cli.finding import Finding, Findings
from voicefleet.cli.permissions import Attempt, roles
from voicefleet.producer.client import VoiceFleet
from voicefleet.producer.errors import ServerRefused, VoiceFleetError, translated
from voicefleet.wire.link import Argument, Link, ReplyError


async def permissions(fleet: VoiceFleet) -> Findings:
    """Whether this user has permission for all that its role needs.

    A user that may add requests is for clients, one that may write leases for workers, and one that
    may do both for both. A user that may do neither is an observer.
    """
    clients, workers, observers = roles(fleet.keys)
    async with _links(fleet) as link_to:

        async def may(attempt: Attempt) -> bool:
            link = await link_to(attempt.key or fleet.keys.workers)
            return not await is_refused(link, attempt.words)

        own = [role for role in (clients, workers) if await may(role.attempts[0])]
        own = own or [observers]
        refused = [one for role in own for one in role.attempts if not await may(one)]
    user = await _user(fleet)
    if refused:
        names = ", ".join(dict.fromkeys(attempt.name for attempt in refused))
        advice = f"ACL SETUSER {user} {_grants(refused)}"
        yield Finding("fail", f"user {user} may not: {names}", advice)
    else:
        names = " and ".join(role.name for role in own)
        yield Finding("ok", f"user {user} may do all that {names} do")
    if clients in own:
        try:
            await fleet.redis.call("CLIENT UNBLOCK", 0)
        except ServerRefused:
            found = "CLIENT UNBLOCK is refused: the client makes a connection for each new session"
            yield Finding("warn", found, f"ACL SETUSER {user} +client|unblock")


def _grants(refused: Sequence[Attempt]) -> str:
    """The ACL rules that permit the refused commands, and nothing else."""
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
    """Raw connections to the servers that own keys: redis-py converts replies of known commands."""
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
    """Whether the server refuses a command for want of permission. Other errors do not count."""
    (reply,) = await link.batch([command])
    return isinstance(reply, ReplyError) and str(reply).startswith("NOPERM")


async def _user(fleet: VoiceFleet) -> str:
    try:
        name: bytes = await fleet.redis.call("ACL WHOAMI")
    except VoiceFleetError:
        return fleet.redis.endpoint.username or "default"
    return name.decode()
