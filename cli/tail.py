"""``tail``: follow a session's audio stream."""

from voicefleet.cli.status_line import StatusLine
from voicefleet.cli.target import DEFAULT, Target
from voicefleet.schemas import FRAME_MS, AudioEntry, End, Frame, Start


def line(entry: AudioEntry) -> str | None:
    """One line about an entry; ``None`` for a frame without a text mark."""
    at = f"{entry.id!s:>9}  "
    match entry:
        case Start():
            spoken = f"{entry.model} {entry.voice} by {entry.worker}, {entry.sample_rate} Hz"
            return f"{at}start  {entry.request}: {spoken}"
        case Frame(text=str(text)):
            return f"{at}{(entry.id.n - 1) * FRAME_MS / 1000:6.2f} s  {text}"
        case Frame():
            return None
        case End():
            error = f" ({entry.error})" if entry.error else ""
            length = f"{entry.frames} frames, {entry.frames * FRAME_MS / 1000:.2f} s"
            return f"{at}end    {entry.request}: {entry.reason}{error}, {length}"


async def tail(
    session: str,
    *,
    after: str | None = None,
    all: bool = False,  # noqa: A002 the option's name
    turns: int | None = None,
    target: Target = DEFAULT,
) -> None:
    """Show SESSION's audio stream as it grows: starts, text marks, ends, a count of frames.

    Parameters
    ----------
    after
        Begin after this entry, such as 3-17.
    all
        Begin with the oldest entry that is kept.
    turns
        End after the end of so many turns.
    """
    start = None if all else after or "$"
    frames = ended = 0
    async with target.fleet() as fleet, fleet.session(session).listen(after=start) as listener:
        with StatusLine() as status:
            status.show(f"{session}: waiting")
            async for entry in listener:
                frames += isinstance(entry, Frame)
                if (shown := line(entry)) is not None:
                    status.clear()
                    print(shown, flush=True)
                status.show(f"{session}: {entry.id}, {frames} frames seen")
                ended += isinstance(entry, End)
                if turns is not None and ended >= turns:
                    return
