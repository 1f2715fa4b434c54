"""``pause``, ``resume``, ``stop``: say what a session shall do."""

import sys
from contextlib import suppress

from voicefleet.cli.target import DEFAULT, Target
from voicefleet.producer.client import CONTROL_TTL_S
from voicefleet.producer.errors import ServerRefused
from voicefleet.schemas import ControlValue, Level
from voicefleet.schemas.control import StopThrough, encode


async def pause(session: str, *, target: Target = DEFAULT) -> None:
    """Publish no further frame of SESSION until it is resumed."""
    await _wish(session, Level.PAUSE, target)


async def resume(session: str, *, target: Target = DEFAULT) -> None:
    """Let SESSION go on with its next frame; takes back a pause or a stop."""
    await _wish(session, Level.RESUME, target)


async def stop(session: str, *, request: str | None = None, target: Target = DEFAULT) -> None:
    """End what SESSION speaks and what it is given later, until it is resumed.

    Parameters
    ----------
    request
        End only this turn, and those that were added before it.
    """
    await _wish(session, Level.STOP if request is None else StopThrough(request), target)


async def _wish(session: str, wish: ControlValue, target: Target) -> None:
    """Set the control key. A session may be told before its first turn: that is said, no error."""
    async with target.fleet() as fleet:
        handle = fleet.session(session)
        match wish:
            case Level.PAUSE:
                await handle.pause()
            case Level.RESUME:
                await handle.resume()
            case Level.STOP:
                await handle.stop()
            case StopThrough(request):
                await handle.stop(request)
        known = True
        with suppress(ServerRefused):  # this user may control the session, and not look at it
            known = await handle.state() is not None
    print(f"{session}: {encode(wish)}")
    if not known:
        holds = f"this holds for what it is given within {CONTROL_TTL_S // 60} min"
        print(f"{session}: no worker knows this session now; {holds}", file=sys.stderr)
