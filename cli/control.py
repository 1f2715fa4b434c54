"""``pause``, ``resume``, ``stop``: set a session's control value."""

import sys
from contextlib import suppress

from voicefleet.cli.target import DEFAULT, Target
from voicefleet.producer.client import CONTROL_TTL_S
from voicefleet.producer.errors import ServerRefused
from voicefleet.schemas import ControlValue, Level
from voicefleet.schemas.control import StopThrough, encode


async def pause(session: str, *, target: Target = DEFAULT) -> None:
    """Publish no further frame of SESSION until it is resumed."""
    await _set(session, Level.PAUSE, target)


async def resume(session: str, *, target: Target = DEFAULT) -> None:
    """Let SESSION go on with its next frame. Undoes a pause or a stop."""
    await _set(session, Level.RESUME, target)


async def stop(session: str, *, request: str | None = None, target: Target = DEFAULT) -> None:
    """End the turns of SESSION, those to come too, until it is resumed.

    Parameters
    ----------
    request
        End only this turn, and those that were added before it.
    """
    await _set(session, Level.STOP if request is None else StopThrough(request), target)


async def _set(session: str, value: ControlValue, target: Target) -> None:
    """Set the control value, and say on stderr if no worker knows the session yet."""
    async with target.fleet() as fleet:
        handle = fleet.session(session)
        match value:
            case Level.PAUSE:
                await handle.pause()
            case Level.RESUME:
                await handle.resume()
            case Level.STOP:
                await handle.stop()
            case StopThrough(request):
                await handle.stop(request)
        known = True
        with suppress(ServerRefused):  # the user may control sessions, but not read their records
            known = await handle.state() is not None
    print(f"{session}: {encode(value)}")
    if not known:
        holds = f"this holds for what it is given within {CONTROL_TTL_S // 60} min"
        print(f"{session}: no worker knows this session now; {holds}", file=sys.stderr)
