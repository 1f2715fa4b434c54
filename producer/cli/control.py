"""``pause``, ``resume``, ``stop``: say what a session shall do."""

from producer.cli.target import DEFAULT, Target


async def pause(session: str, *, target: Target = DEFAULT) -> None:
    """Publish no further frame of SESSION until it is resumed."""
    async with target.fleet() as fleet:
        await fleet.session(session).pause()
    print(f"{session}: pause")


async def resume(session: str, *, target: Target = DEFAULT) -> None:
    """Let SESSION go on with its next frame; takes back a pause or a stop."""
    async with target.fleet() as fleet:
        await fleet.session(session).resume()
    print(f"{session}: resume")


async def stop(session: str, *, request: str | None = None, target: Target = DEFAULT) -> None:
    """End what SESSION speaks and what it is given later, until it is resumed.

    Parameters
    ----------
    request
        End only this turn, and those that were added before it.
    """
    async with target.fleet() as fleet:
        await fleet.session(session).stop(request)
    print(f"{session}: stop" + (f" {request}" if request else ""))
